//! Where to go on with the changes of the leases after an interruption: pure, so that it can be
//! tried against every kind of it.

/// How far a node has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Follow {
    /// The first revision that was not seen yet; `None` if everything has to be listed.
    next: Option<i64>,
}

/// What to read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// All leases.
    List,
    /// Changes from this revision on.
    Changes { from: i64 },
}

impl Follow {
    pub(crate) fn source(self) -> Source {
        self.next.map_or(Source::List, |from| Source::Changes { from })
    }

    /// Everything up to this revision is known.
    pub(crate) fn listed(&mut self, revision: i64) {
        self.next = Some(revision + 1);
    }

    /// The store has begun to tell changes; its own revision says nothing about what was told.
    /// Returns false if the store is younger than what we know of it: it was restored from a
    /// backup, or made anew, and would be silent until it has caught up.
    pub(crate) fn opened(&mut self, revision: i64) -> bool {
        if self.next.is_some_and(|next| revision + 1 < next) {
            self.restart();
        }
        self.next.is_some()
    }

    /// Changes up to this revision were told, as far as it is the revision of a change itself. The
    /// store's own revision may be ahead of changes that are still on their way.
    pub(crate) fn changed(&mut self, revision: i64) {
        self.next = self.next.map(|next| next.max(revision + 1));
    }

    /// What was read is worth nothing: history is gone, or was another one.
    pub(crate) fn restart(&mut self) {
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_resumes_where_it_was() {
        let mut follow = Follow::default();
        assert_eq!(follow.source(), Source::List);
        follow.listed(7);
        assert!(follow.opened(12));
        assert_eq!(follow.source(), Source::Changes { from: 8 });
        follow.changed(9);
        assert_eq!(follow.source(), Source::Changes { from: 10 });
    }

    #[test]
    fn history_that_is_gone_or_another_one_is_answered_by_a_new_list() {
        let mut follow = Follow::default();
        follow.listed(7);
        follow.restart();
        assert_eq!(follow.source(), Source::List);
        follow.listed(7);
        assert!(!follow.opened(3));
        assert_eq!(follow.source(), Source::List);
    }
}
