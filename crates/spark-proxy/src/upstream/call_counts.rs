//! Open calls at one server, by session or organization.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::{Rc, Weak};

/// Counts by key, each kept while something holds it.
pub(super) struct CallCounts<K>(RefCell<HashMap<K, Weak<Cell<u32>>>>);

impl<K> Default for CallCounts<K> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Hash + Eq + Clone> CallCounts<K> {
    pub(super) fn of(&self, key: &K) -> Rc<Cell<u32>> {
        let mut counts = self.0.borrow_mut();
        if let Some(count) = counts.get(key).and_then(Weak::upgrade) {
            return count;
        }
        let count = Rc::default();
        counts.insert(key.clone(), Rc::downgrade(&count));
        count
    }
}

impl<K> CallCounts<K> {
    /// Removes counts that nothing holds.
    pub(super) fn sweep(&self) {
        self.0.borrow_mut().retain(|_, count| count.strong_count() > 0);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}
