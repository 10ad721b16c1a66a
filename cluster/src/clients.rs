// SPDX-License-Identifier: Apache-2.0
//! What a node knows of its own clients: numbers of connections and claims, and the sessions that it holds.

use std::collections::BTreeSet;

use compact_str::CompactString;
use hashbrown::{HashMap, HashSet};

use crate::entry::{Boot, Claim, Delta, NodeId};
use crate::machine::{ClientRow, Kind};

/// Claims of one node that have no answer; beyond, clients are told to come again.
const OPEN_MAX: usize = 10_000;

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
    /// This is to be agreed on first; then [`OwnClients::answered`] says what came of it.
    Claim(Claim),
    /// This node has no place in the cluster now, or too many claims wait, or one of this client does.
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
    /// Whose they are.
    waiting: HashSet<CompactString, foldhash::fast::RandomState>,
    held: ByClient<Held>,
}

type ByClient<T> = HashMap<CompactString, T, foldhash::fast::RandomState>;

impl OwnClients {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A start of this node begins; a session that the tables did not have is new there.
    pub fn begin(&mut self, boot: Boot) {
        self.boot = Some(boot);
        self.claim = 0;
        for held in self.held.values_mut() {
            held.epoch = 0;
        }
        self.open.clear();
        self.waiting.clear();
    }

    /// The start is over, and nobody is let in before the next one; number of the last connection.
    pub fn end(&mut self) -> u64 {
        self.boot = None;
        self.number
    }

    /// Which start this is, once it has begun.
    #[must_use]
    pub const fn boot(&self) -> Option<Boot> {
        self.boot
    }

    /// What a client may do; `row` is what the tables have of it, `applied` up to which entry.
    ///
    /// A client whose session ends with it, and whose client id nobody else has, need not wait.
    pub fn wish(&mut self, me: NodeId, wish: Wish, row: Option<&ClientRow>, applied: u64) -> Way {
        let Some(boot) = self.boot else {
            return Way::Nowhere;
        };
        self.number += 1;
        let number = self.number;
        let is_anothers = row.is_some_and(|row| {
            matches!(row.kind, Kind::Kept { .. })
                || row.connected.is_some_and(|(node, _)| node != me)
                || row.user != wish.user
        });
        // two of one client would be judged in any order
        if self.open.len() >= OPEN_MAX || self.waiting.contains(&wish.client_id) {
            return Way::Nowhere;
        }
        if wish.clean_start && wish.expiry_secs == 0 && !is_anothers {
            self.held.remove(&wish.client_id);
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
        self.waiting.insert(wish.client_id.clone());
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

    /// A claim has its answer, which this node has applied; `row` is what the tables have of the client since. Whether its
    /// connection may live.
    pub fn answered(&mut self, me: NodeId, claim: &Claim, row: Option<&ClientRow>) -> bool {
        if self.boot != Some(claim.boot) {
            return false;
        }
        self.open.remove(&claim.number);
        self.waiting.remove(&claim.client_id);
        let own = Some((me, claim.connection));
        let granted = row.filter(|row| row.connected == own);
        if let Some(row) = granted {
            if row.holder() == Some(me) {
                let held = Held {
                    user: claim.user.clone(),
                    expiry_secs: claim.expiry_secs,
                    number: claim.connection,
                    epoch: row.epoch,
                };
                self.held.insert(claim.client_id.clone(), held);
            } else {
                self.held.remove(&claim.client_id);
            }
        }
        granted.is_some()
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
            // one that is connected is of a claim that was not answered yet
            0 => row
                .filter(|row| row.holder() == Some(me) && row.connected.is_none())
                .map(|row| row.epoch),
            epoch => Some(epoch),
        };
        self.held.remove(client_id);
        Some(Delta::Ended {
            client_id: client_id.into(),
            epoch: epoch?,
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

    /// What the tables have of a client that was granted a claim.
    fn row(claim: &Claim, epoch: u64) -> ClientRow {
        let kind = match claim.expiry_secs {
            0 => Kind::Clean,
            expiry_secs => Kind::Kept {
                holder: me(),
                expiry_secs,
            },
        };
        ClientRow::new(claim, kind, epoch)
    }

    fn granted(own: &mut OwnClients, claim: &Claim, epoch: u64) -> bool {
        own.answered(me(), claim, Some(&row(claim, epoch)))
    }

    #[test]
    fn a_client_whose_claim_is_open_comes_again_later() {
        let mut own = begun();
        let first = claim(&mut own, wish("a", false, 60));
        let next = own.wish(me(), wish("a", true, 0), None, 7);
        assert_eq!(next, Way::Nowhere);
        let other = claim(&mut own, wish("b", true, 60));
        assert_eq!((first.answered, other.answered), (1, 1));
        assert!(granted(&mut own, &first, 11));
        assert_eq!(own.sessions().count(), 1);
        let second = claim(&mut own, wish("a", true, 60));
        assert_eq!(second.answered, other.number);
        assert!(granted(&mut own, &second, 12));
        let clean = own.wish(me(), wish("a", true, 0), None, 7);
        assert!(matches!(clean, Way::At(..)), "{clean:?}");
        assert_eq!(own.sessions().count(), 0);
    }

    #[test]
    fn a_clean_client_waits_where_its_id_is_anothers() {
        let mut own = begun();
        let first = claim(&mut own, wish("a", false, 60));
        let mut known = row(&first, 11);
        known.kind = Kind::Clean;
        let mut other = wish("a", true, 0);
        let at_once = |own: &mut OwnClients, wish: &Wish, row: &ClientRow| {
            matches!(own.wish(me(), wish.clone(), Some(row), 12), Way::At(..))
        };
        assert!(granted(&mut own, &first, 11));
        assert!(at_once(&mut own, &other, &known));
        other.user = Some("somebody".into());
        assert!(!at_once(&mut own, &other, &known));
        other.user = None;
        other.client_id = "b".into();
        known.connected = NodeId::new(2).map(|node| (node, 1));
        assert!(!at_once(&mut own, &other, &known));
    }

    #[test]
    fn a_client_that_was_taken_while_its_claim_was_open_does_not_live() {
        let mut own = begun();
        let open = claim(&mut own, wish("a", false, 60));
        let mut now = row(&open, 12);
        now.connected = NodeId::new(2).map(|node| (node, 1));
        assert!(!own.answered(me(), &open, Some(&now)));
        assert_eq!(own.sessions().count(), 0);
    }

    #[test]
    fn a_claim_of_a_former_start_counts_no_more() {
        let mut own = begun();
        let open = claim(&mut own, wish("a", false, 60));
        assert_eq!(own.end(), open.connection);
        assert_eq!(own.wish(me(), wish("b", true, 0), None, 12), Way::Nowhere);
        own.begin(Boot(4));
        assert!(!granted(&mut own, &open, 11));
        assert_eq!(own.sessions().count(), 0);
    }

    #[test]
    fn the_end_of_a_session_names_its_claim_and_not_a_later_one() {
        let mut own = begun();
        let first = claim(&mut own, wish("a", false, 60));
        assert!(granted(&mut own, &first, 11));
        let second = claim(&mut own, wish("a", true, 60));
        assert!(granted(&mut own, &second, 12));
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
