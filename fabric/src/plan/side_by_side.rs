//! Two maps, walked side by side: the cheapest way to compare tables of a large cluster.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter;

/// What is desired and what is observed under a key; one of them at least.
pub(super) type Pair<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

/// Returns all keys of both maps in order, each with what either has for it.
pub(super) fn side_by_side<'a, K: Ord, V>(
    desired: &'a BTreeMap<K, V>,
    observed: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = Pair<'a, K, V>> {
    let (mut desired, mut observed) = (desired.iter().peekable(), observed.iter().peekable());
    iter::from_fn(move || {
        let order = match (desired.peek(), observed.peek()) {
            (Some((wanted, _)), Some((now, _))) => wanted.cmp(now),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let wanted = if order.is_le() { desired.next() } else { None };
        let now = if order.is_ge() { observed.next() } else { None };
        let (key, _) = wanted.or(now)?;
        Some((key, wanted.map(|(_, value)| value), now.map(|(_, value)| value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_comes_once_with_what_either_map_has_for_it() {
        let (desired, observed) =
            (BTreeMap::from([(1, "a"), (3, "c"), (4, "d")]), BTreeMap::from([(2, "b"), (3, "C")]));
        let pairs: Vec<_> = side_by_side(&desired, &observed).collect();
        assert_eq!(
            pairs,
            [
                (&1, Some(&"a"), None),
                (&2, None, Some(&"b")),
                (&3, Some(&"c"), Some(&"C")),
                (&4, Some(&"d"), None),
            ]
        );
        let nothing = BTreeMap::<u8, u8>::new();
        assert_eq!(side_by_side(&nothing, &nothing).count(), 0);
    }
}
