//! A set that mostly has one member: who claims a prefix, who holds an allowed IP, what routes there are to one place.
//! A `BTreeSet` of one takes the room of eleven, which for a thousand nodes is megabytes.

use serde::{Deserialize, Serialize};

/// Its members in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Few<T>(Vec<T>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Ord> Few<T> {
    pub(crate) fn of(member: T) -> Self {
        Self(vec![member])
    }

    pub(crate) fn insert(&mut self, member: T) {
        if let Err(at) = self.0.binary_search(&member) {
            self.0.reserve_exact(1);
            self.0.insert(at, member);
        }
    }

    pub(crate) fn remove(&mut self, member: &T) {
        if let Ok(at) = self.0.binary_search(member) {
            self.0.remove(at);
        }
    }

    pub(crate) fn contains(&self, member: &T) -> bool {
        self.0.binary_search(member).is_ok()
    }
}

impl<T> Few<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn first(&self) -> Option<&T> {
        self.0.first()
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_what_a_set_is(changes in prop::collection::vec((any::<bool>(), 0..6u8), 0..40)) {
            let (mut few, mut set) = (Few::default(), BTreeSet::new());
            for (inserts, member) in changes {
                if inserts {
                    few.insert(member);
                    set.insert(member);
                } else {
                    few.remove(&member);
                    set.remove(&member);
                }
                prop_assert!(few.iter().eq(set.iter()));
                prop_assert_eq!(few.first(), set.first());
                prop_assert_eq!(few.is_empty(), set.is_empty());
                prop_assert!((0..6).all(|m| few.contains(&m) == set.contains(&m)));
            }
            // A snapshot that was written with a set reads as this.
            let mut bytes = Vec::new();
            ciborium::into_writer(&set, &mut bytes).unwrap();
            let read: Few<u8> = ciborium::from_reader(bytes.as_slice()).unwrap();
            prop_assert_eq!(read, few);
        }
    }
}
