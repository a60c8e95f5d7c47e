//! Control messages with one number (cmsg(3)): `UDP_SEGMENT` with 16 bits, `UDP_GRO` with 32.

#![expect(unsafe_code, reason = "headers of messages are C structures")]

/// One control message, and room for one.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Control {
    header: libc::cmsghdr,
    value: [u8; 8],
}

impl Control {
    /// Room for one.
    pub(super) fn empty() -> Self {
        Self::new(0, 0, [0; 8])
    }

    /// Asks the kernel to cut a message into datagrams of `len` bytes.
    pub(super) fn segment(len: usize) -> Self {
        let [low, high] = u16::try_from(len).unwrap_or(0).to_ne_bytes();
        let value = [low, high, 0, 0, 0, 0, 0, 0];
        Self::new(libc::UDP_SEGMENT, size_of::<u16>(), value)
    }

    /// Returns how long the datagrams were that the kernel has put together, if it says so to
    /// somebody who receives a message with this header.
    pub(super) fn merged_segment(&self, header: &libc::msghdr) -> Option<usize> {
        // The length has another type with musl.
        let mut shortest = header.msg_controllen;
        set_len(&mut shortest, size_of::<libc::cmsghdr>() + size_of::<libc::c_int>());
        let is_segment = header.msg_controllen >= shortest
            && self.header.cmsg_level == libc::SOL_UDP
            && self.header.cmsg_type == libc::UDP_GRO;
        let [a, b, c, d, ..] = self.value;
        usize::try_from(libc::c_int::from_ne_bytes([a, b, c, d])).ok().filter(|_| is_segment)
    }

    fn new(kind: libc::c_int, len: usize, value: [u8; 8]) -> Self {
        // SAFETY: the structure is of integers only, for which zero is valid.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = kind;
        set_len(&mut header.cmsg_len, size_of::<libc::cmsghdr>() + len);
        Self { header, value }
    }
}

/// A header of a message without anything.
pub(super) fn empty_header() -> libc::mmsghdr {
    // SAFETY: the structure is of integers and pointers, for which zero is valid.
    unsafe { std::mem::zeroed() }
}

/// Lengths have different types with different C libraries.
pub(super) fn set_len<T: TryFrom<usize>>(field: &mut T, len: usize) {
    if let Ok(len) = T::try_from(len) {
        *field = len;
    }
}
