//! The Internet checksum (RFC 1071), which is taken over every byte that is carried.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "a function compiled for a processor that has wider registers")
)]

/// Less than this is not worth asking what processor it is.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 256;

/// Returns the sum of all 16-bit words, not folded. A last odd byte counts as the high one.
///
/// Two sums can be added as long as what the first was taken over has an even length.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= LONG && is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { sum_avx2(bytes) };
    }
    sum_words(bytes)
}

/// The same with registers of 256 bits, which compilers do not use unless they are told to.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    sum_words(bytes)
}

/// Adds 32 bits at a time, which compilers turn into vector instructions.
#[inline(always)]
fn sum_words(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    // In the byte order of the machine, because the order can be put right in the result.
    let native: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let last = match *rest {
        [a] => [a, 0, 0, 0],
        [a, b] => [a, b, 0, 0],
        [a, b, c] => [a, b, c, 0],
        _ => [0; 4],
    };
    u64::from(u16::from_be(fold(native + u64::from(u32::from_ne_bytes(last)))))
}

/// Folds a sum to 16 bits with end-around carry.
pub(super) fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let [low, high, ..] = ((sum & 0xffff) + (sum >> 16)).to_le_bytes();
    u16::from_le_bytes([low, high])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The checksum as RFC 1071 explains it.
    fn naive_checksum(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            if sum > 0xffff {
                sum = (sum & 0xffff) + 1;
            }
        }
        u16::try_from(sum).unwrap()
    }

    /// Zero and all ones are the same number in this arithmetic.
    fn same(left: u16, right: u16) -> bool {
        left == right || (left.min(right) == 0 && left.max(right) == 0xffff)
    }

    proptest! {
        #[test]
        fn sums_agree_with_a_naive_one(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(same(fold(sum(&bytes)), naive_checksum(&bytes)));
            // As on processors that have no wider registers.
            prop_assert_eq!(fold(sum_words(&bytes)), fold(sum(&bytes)));
        }

        #[test]
        fn sums_of_parts_add_up(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..100) {
            let at = (at * 2).min(bytes.len() / 2 * 2);
            let parts = sum(&bytes[..at]) + sum(&bytes[at..]);
            prop_assert!(same(fold(parts), naive_checksum(&bytes)));
        }
    }
}
