// SPDX-License-Identifier: Apache-2.0
//! What a node knows of its own clients: numbers of connections and claims, and the sessions that it holds.

use std::collections::BTreeSet;

use compact_str::CompactString;
use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::entry::{Boot, Claim, Delta, NodeId};
use crate::machine::{ClientRow, Kind};

/// A session that this node holds.
#[derive(Clone, Debug)]
struct Held {
    user: Option<CompactString>,
    expiry_secs: u32,
    /// Of its last connection; 0: none since the process began.
    number: u64,
    /// The claim that gave it to this node; 0: as the tables have it.
    epoch: u64,
}

/// A claim that has no answer yet.
#[derive(Clone, Debug)]
struct Open {
    number: u64,
    /// The connection up to which the client is elsewhere meanwhile.
    taken: Option<u64>,
}

/// A client that wants to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Who.
    pub client_id: CompactString,
    /// As whom.
    pub user: Option<CompactString>,
    /// Ends a session that there is.
    pub clean_start: bool,
    /// How long its session stays without it (s).
    pub expiry_secs: u32,
}

/// What becomes of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// It may connect at once under this number, and that is said.
    At(u64, Delta),
    /// This is to be agreed on first; then [`OwnClients::answered`] says whether its number was taken meanwhile.
    Claim(Claim),
    /// This node has no place in the cluster now.
    Nowhere,
}

/// Clients of this node, on behalf of its shards.
#[derive(Debug, Default)]
pub struct OwnClients {
    boot: Option<Boot>,
    /// Of the last connection, in this process.
    number: u64,
    /// Of the last claim, in this start.
    claim: u64,
    open: BTreeSet<u64>,
    /// The same, by client.
    waiting: ByClient<SmallVec<[Open; 1]>>,
    held: ByClient<Held>,
}

type ByClient<T> = HashMap<CompactString, T, foldhash::fast::RandomState>;

impl OwnClients {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A start of this node begins.
    pub fn begin(&mut self, boot: Boot) {
        self.boot = Some(boot);
        self.claim = 0;
        self.open.clear();
        self.waiting.clear();
    }

    /// Number of the last connection.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.number
    }

    /// Which start this is, once it has begun.
    #[must_use]
    pub const fn boot(&self) -> Option<Boot> {
        self.boot
    }

    /// What a client may do; `row` is what the tables have of it, `applied` up to which entry.
    pub fn wish(&mut self, me: NodeId, wish: Wish, row: Option<&ClientRow>, applied: u64) -> Way {
        let Some(boot) = self.boot else {
            return Way::Nowhere;
        };
        self.number += 1;
        let number = self.number;
        let is_elsewhere = row.is_some_and(|row| {
            matches!(row.kind, Kind::Kept { .. })
                || row.connected.is_some_and(|(node, _)| node != me)
        });
        let is_open = self.waiting.contains_key(&wish.client_id);
        if wish.clean_start && wish.expiry_secs == 0 && !is_elsewhere && !is_open {
            let connected = Delta::Connected {
                client_id: wish.client_id,
                user: wish.user,
                connection: number,
                since: applied,
            };
            return Way::At(number, connected);
        }
        self.claim += 1;
        self.open.insert(self.claim);
        let answered = self.open.first().copied().unwrap_or(self.claim);
        let waiting = self.waiting.entry(wish.client_id.clone()).or_default();
        waiting.push(Open {
            number: self.claim,
            taken: None,
        });
        Way::Claim(Claim {
            node: me,
            boot,
            number: self.claim,
            answered,
            client_id: wish.client_id,
            user: wish.user,
            connection: number,
            clean_start: wish.clean_start,
            expiry_secs: wish.expiry_secs,
        })
    }

    /// A claim has its answer: granted at an index, or not. True: the client is elsewhere already.
    pub fn answered(&mut self, claim: &Claim, epoch: Option<u64>) -> bool {
        if self.boot != Some(claim.boot) {
            return true;
        }
        self.open.remove(&claim.number);
        let taken = self.waited(claim);
        if let Some(epoch) = epoch {
            if claim.expiry_secs > 0 {
                let held = Held {
                    user: claim.user.clone(),
                    expiry_secs: claim.expiry_secs,
                    number: claim.connection,
                    epoch,
                };
                self.held.insert(claim.client_id.clone(), held);
            } else {
                self.held.remove(&claim.client_id);
            }
        }
        taken.is_some_and(|taken| taken >= claim.connection)
    }

    /// A claim waits no more; the connection up to which its client is elsewhere.
    fn waited(&mut self, claim: &Claim) -> Option<u64> {
        let waiting = self.waiting.get_mut(&claim.client_id)?;
        let at = waiting
            .iter()
            .position(|open| open.number == claim.number)?;
        let taken = waiting.remove(at).taken;
        if waiting.is_empty() {
            self.waiting.remove(&claim.client_id);
        }
        taken
    }

    /// The client is connected elsewhere, and its connections up to this number are over.
    pub fn taken(&mut self, client_id: &str, number: u64) {
        for open in self.waiting.get_mut(client_id).into_iter().flatten() {
            open.taken = open.taken.max(Some(number));
        }
    }

    /// The store has given a session back.
    pub fn hold(
        &mut self,
        client_id: CompactString,
        user: Option<CompactString>,
        expiry_secs: u32,
    ) {
        let held = Held {
            user,
            expiry_secs,
            number: 0,
            epoch: 0,
        };
        self.held.insert(client_id, held);
    }

    /// A session has ended whose last connection had this number: what is to be said of it. `row` as the tables have it.
    pub fn ended(
        &mut self,
        me: NodeId,
        client_id: &str,
        number: u64,
        row: Option<&ClientRow>,
    ) -> Option<Delta> {
        // a later claim is another session
        let held = self.held.get(client_id)?;
        if held.number != number {
            return None;
        }
        let epoch = match held.epoch {
            0 => {
                let row = row
                    .filter(|row| matches!(row.kind, Kind::Kept { holder, .. } if holder == me))?;
                row.epoch
            }
            epoch => epoch,
        };
        self.held.remove(client_id);
        Some(Delta::Ended {
            client_id: client_id.into(),
            epoch,
        })
    }

    /// A claim elsewhere has ended a session: it is held no more.
    pub fn dropped(&mut self, client_id: &str, epoch: u64) {
        if self
            .held
            .get(client_id)
            .is_some_and(|held| held.epoch < epoch)
        {
            self.held.remove(client_id);
        }
    }

    /// All sessions that this node holds: whose, as whom, for how long (s).
    pub fn sessions(&self) -> impl Iterator<Item = (CompactString, Option<CompactString>, u32)> {
        self.held
            .iter()
            .map(|(client_id, held)| (client_id.clone(), held.user.clone(), held.expiry_secs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> NodeId {
        NodeId::new(1).expect("not 0")
    }

    fn wish(client_id: &str, clean_start: bool, expiry_secs: u32) -> Wish {
        Wish {
            client_id: client_id.into(),
            user: None,
            clean_start,
            expiry_secs,
        }
    }

    fn claim(own: &mut OwnClients, of: Wish) -> Claim {
        match own.wish(me(), of, None, 7) {
            Way::Claim(claim) => claim,
            other => panic!("a claim: {other:?}"),
        }
    }

    fn begun() -> OwnClients {
        let mut own = OwnClients::new();
        own.begin(Boot(3));
        own
    }

    #[test]
    fn nobody_comes_before_the_node_has_begun() {
        let mut own = OwnClients::new();
        assert_eq!(own.wish(me(), wish("a", true, 0), None, 0), Way::Nowhere);
    }

    #[test]
    fn a_clean_client_comes_at_once_where_nobody_else_has_its_id() {
        let mut own = begun();
        let Way::At(number, delta) = own.wish(me(), wish("a", true, 0), None, 7) else {
            panic!("at once");
        };
        let said = Delta::Connected {
            client_id: "a".into(),
            user: None,
            connection: number,
            since: 7,
        };
        assert_eq!((number, delta), (1, said));
    }

    #[test]
    fn a_clean_client_waits_behind_an_open_claim_of_its_id() {
        let mut own = begun();
        let first = claim(&mut own, wish("a", false, 60));
        let second = claim(&mut own, wish("a", true, 0));
        assert_eq!((first.answered, second.answered), (1, 1));
        assert!(!own.answered(&first, Some(11)));
        assert!(!own.answered(&second, Some(12)));
        assert_eq!(own.sessions().count(), 0);
        assert_eq!(claim(&mut own, wish("b", false, 60)).answered, 3);
    }

    #[test]
    fn a_client_that_was_taken_while_its_claim_was_open_is_told() {
        let mut own = begun();
        let open = claim(&mut own, wish("a", false, 60));
        own.taken("a", open.connection);
        assert!(own.answered(&open, Some(11)));
    }

    #[test]
    fn a_claim_of_a_former_start_counts_no_more() {
        let mut own = begun();
        let open = claim(&mut own, wish("a", false, 60));
        own.begin(Boot(4));
        assert!(own.answered(&open, Some(11)));
        assert_eq!(own.sessions().count(), 0);
    }

    #[test]
    fn the_end_of_a_session_names_its_claim_and_not_a_later_one() {
        let mut own = begun();
        let first = claim(&mut own, wish("a", false, 60));
        own.answered(&first, Some(11));
        let second = claim(&mut own, wish("a", true, 60));
        own.answered(&second, Some(12));
        assert_eq!(own.ended(me(), "a", first.connection, None), None);
        let ended = own.ended(me(), "a", second.connection, None);
        let said = Delta::Ended {
            client_id: "a".into(),
            epoch: 12,
        };
        assert_eq!(ended, Some(said));
        assert_eq!(own.ended(me(), "a", second.connection, None), None);
    }
}
