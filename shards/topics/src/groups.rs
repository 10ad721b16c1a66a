// SPDX-License-Identifier: Apache-2.0
//! Shared groups: their members on this shard, how many the others have, and whose turn it is.
//!
//! The publishing shard chooses a shard, weighted by members; the chosen shard chooses the member. Members that are not
//! connected count only when nobody is connected anywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use compact_str::CompactString;

use crate::hash::{TextHash, reduce, scatter, stable};
use crate::index::Index;
use crate::interest::{ShardId, Want};
use crate::matches::{Choice, Publisher};
use crate::slab::{NONE, Slab};
use crate::subscribers::{Subscriber, SubscriberList};
use crate::subscription::ClientKey;

/// How a shared group chooses the member for a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// In turn; exact for the messages of one publishing shard.
    #[default]
    RoundRobin,
    /// By [`Publisher::rng`].
    Random,
    /// The same member until it goes.
    Sticky,
    /// The same member for the same publisher.
    HashClient,
    /// The same member for the same topic.
    HashTopic,
    /// Members on the publisher's shard before others; in turn among them.
    LocalFirst,
}

/// Another shard's members.
#[derive(Clone, Copy, Debug)]
struct Remote {
    shard: ShardId,
    online: u32,
    offline: u32,
    persistent: bool,
}

impl Remote {
    const fn members(self, online: bool) -> u32 {
        if online { self.online } else { self.offline }
    }
}

/// One group on one filter.
#[derive(Debug)]
pub(crate) struct Group {
    /// `$share/GROUP/FILTER`
    pub(crate) full: Arc<str>,
    /// The entry of the filter without the prefix, and the neighbours in its list of groups.
    pub(crate) entry: u32,
    pub(crate) next: u32,
    previous: u32,
    /// Connected members in `0..online`, then the others.
    members: SubscriberList,
    online: u32,
    /// Members that a publisher must wait for.
    persistent: u32,
    /// By shard; never with neither online nor offline members.
    remotes: Vec<Remote>,
    strategy: Strategy,
    /// Whose turn it is: among all members of all shards, and among the members here.
    turn: u32,
    member_turn: u32,
    /// For [`Strategy::Sticky`]: the shard last chosen, and the position of the member last chosen.
    sticky_shard: Option<ShardId>,
    sticky_member: u32,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            full: Arc::default(),
            entry: NONE,
            next: NONE,
            previous: NONE,
            members: SubscriberList::default(),
            online: 0,
            persistent: 0,
            remotes: Vec::new(),
            strategy: Strategy::default(),
            turn: 0,
            member_turn: 0,
            sticky_shard: None,
            sticky_member: NONE,
        }
    }
}

/// The group's name in `$share/GROUP/FILTER`.
fn name(full: &str) -> &str {
    full.split('/').nth(1).unwrap_or_default()
}

#[derive(Debug)]
pub(crate) struct Groups {
    hash: TextHash,
    own: ShardId,
    groups: Slab<Group>,
    index: Index,
    strategy: Strategy,
    /// By name of the group.
    strategies: BTreeMap<CompactString, Strategy>,
}

impl Groups {
    pub(crate) fn new(own: ShardId, hash: TextHash, strategy: Strategy) -> Self {
        Self {
            hash,
            own,
            groups: Slab::default(),
            index: Index::default(),
            strategy,
            strategies: BTreeMap::new(),
        }
    }

    pub(crate) fn set_strategy(&mut self, group: &str, strategy: Strategy) {
        self.strategies.insert(CompactString::new(group), strategy);
        for known in self
            .groups
            .iter_mut()
            .filter(|known| name(&known.full) == group)
        {
            known.strategy = strategy;
        }
    }

    pub(crate) fn find(&self, full: &str) -> Option<u32> {
        self.index
            .find(self.hash.of(full), |at| &*self.groups[at].full == full)
    }

    /// A new group of the filter `entry`, before `next` in its list.
    pub(crate) fn insert(&mut self, full: &str, entry: u32, next: u32) -> u32 {
        let strategy = self
            .strategies
            .get(name(full))
            .copied()
            .unwrap_or(self.strategy);
        let full: Arc<str> = full.into();
        let hash = self.hash.of(&full);
        let at = self.groups.insert(Group {
            full,
            entry,
            next,
            strategy,
            ..Group::default()
        });
        if next != NONE {
            self.groups[next].previous = at;
        }
        self.index
            .insert(hash, at, |at| self.hash.of(&self.groups[at].full));
        at
    }

    /// Frees a group that nobody is in any more. Its entry, and the first of the entry's groups where that changed.
    pub(crate) fn remove_if_empty(&mut self, at: u32) -> Option<(u32, Option<u32>)> {
        let group = &self.groups[at];
        if group.members.len() > 0 || !group.remotes.is_empty() {
            return None;
        }
        let hash = self.hash.of(&group.full);
        self.index
            .remove(hash, at, |at| self.hash.of(&self.groups[at].full));
        let Group {
            entry,
            next,
            previous,
            ..
        } = self.groups.remove(at);
        if next != NONE {
            self.groups[next].previous = previous;
        }
        if previous == NONE {
            return Some((entry, Some(next)));
        }
        self.groups[previous].next = next;
        Some((entry, None))
    }

    #[inline]
    pub(crate) fn group(&self, at: u32) -> &Group {
        &self.groups[at]
    }

    #[inline]
    pub(crate) fn group_mut(&mut self, at: u32) -> &mut Group {
        &mut self.groups[at]
    }

    /// Who gets a message published on this shard.
    pub(crate) fn choose(&mut self, at: u32, publisher: Publisher, topic: &str) -> Option<Choice> {
        let own = self.own;
        let group = &mut self.groups[at];
        let online = group.online > 0 || group.remotes.iter().any(|remote| remote.online > 0);
        match group.shard(own, online, publisher, topic)? {
            shard if shard == own => group.member(online, publisher, topic, &[]),
            shard => group.remote(shard),
        }
    }

    /// Who gets a message that another shard sent here, or that a member did not take: somebody connected here,
    /// somebody connected elsewhere, then those not connected in the same order.
    pub(crate) fn choose_again(
        &mut self,
        at: u32,
        publisher: Publisher,
        topic: &str,
        except: &[ClientKey],
        among: u64,
    ) -> Option<Choice> {
        let group = &mut self.groups[at];
        [true, false].into_iter().find_map(|online| {
            group.member(online, publisher, topic, except).or_else(|| {
                let allowed = group.remotes.iter();
                let total = allowed
                    .filter(|remote| remote.shard.bit() & among != 0)
                    .map(|remote| remote.members(online))
                    .sum();
                let slot = group.slot(total, publisher, topic)?;
                group.remote(group.shard_at(slot, None, online, among)?)
            })
        })
    }
}

impl Group {
    #[inline]
    pub(crate) fn position(&self, client: ClientKey) -> Option<u32> {
        self.members.position(client)
    }

    #[inline]
    pub(crate) fn member_at(&self, position: u32) -> &Subscriber {
        self.members.at(position)
    }

    #[inline]
    pub(crate) fn member_at_mut(&mut self, position: u32) -> &mut Subscriber {
        self.members.at_mut(position)
    }

    /// What the other shards must know.
    pub(crate) fn want(&self) -> Want {
        Want::Group {
            online: self.online,
            offline: self.members.len() - self.online,
            persistent: self.persistent > 0,
        }
    }

    pub(crate) fn count_persistent(&mut self, was: bool, is: bool) {
        self.persistent = self.persistent + u32::from(is) - u32::from(was);
    }

    /// Adds a member that is not in the group. Each member whose position changed, the new one included, is told to
    /// `moved` with its position.
    pub(crate) fn join(
        &mut self,
        member: Subscriber,
        online: bool,
        moved: &mut impl FnMut(Subscriber, u32),
    ) {
        let position = self.members.push(member);
        moved(member, position);
        if online {
            self.set_online(position, true, moved);
        }
    }

    /// Takes a member out; `moved` as for [`Self::join`].
    pub(crate) fn leave(&mut self, mut position: u32, moved: &mut impl FnMut(Subscriber, u32)) {
        if position < self.online {
            position = self.set_online(position, false, moved);
        }
        let last = self.members.len() - 1;
        self.swap(position, last, moved);
        self.members.swap_remove(last);
    }

    /// A member connected or disconnected: its new position.
    pub(crate) fn set_online(
        &mut self,
        position: u32,
        online: bool,
        moved: &mut impl FnMut(Subscriber, u32),
    ) -> u32 {
        if online == (position < self.online) {
            return position;
        }
        let border = if online { self.online } else { self.online - 1 };
        self.swap(position, border, moved);
        self.online = if online { border + 1 } else { border };
        border
    }

    fn swap(&mut self, a: u32, b: u32, moved: &mut impl FnMut(Subscriber, u32)) {
        if a == b {
            return;
        }
        self.members.swap(a, b);
        moved(*self.members.at(a), a);
        moved(*self.members.at(b), b);
        if self.sticky_member == a {
            self.sticky_member = b;
        } else if self.sticky_member == b {
            self.sticky_member = a;
        }
    }

    /// What another shard has now.
    pub(crate) fn set_remote(
        &mut self,
        shard: ShardId,
        online: u32,
        offline: u32,
        persistent: bool,
    ) {
        let remote = Remote {
            shard,
            online,
            offline,
            persistent,
        };
        let wanted = online > 0 || offline > 0;
        match self
            .remotes
            .binary_search_by_key(&shard, |remote| remote.shard)
        {
            Ok(at) if wanted => self.remotes[at] = remote,
            Ok(at) => {
                self.remotes.remove(at);
            }
            Err(at) if wanted => self.remotes.insert(at, remote),
            Err(_) => {}
        }
    }

    /// Members here that are connected, or are not.
    fn here(&self, online: bool) -> u32 {
        if online {
            self.online
        } else {
            self.members.len() - self.online
        }
    }

    /// The members of a shard that count.
    fn members_of(&self, shard: ShardId, own: ShardId, online: bool) -> u32 {
        if shard == own {
            return self.here(online);
        }
        let remote = self.remotes.iter().find(|remote| remote.shard == shard);
        remote.map_or(0, |remote| remote.members(online))
    }

    /// The shard that chooses.
    fn shard(
        &mut self,
        own: ShardId,
        online: bool,
        publisher: Publisher,
        topic: &str,
    ) -> Option<ShardId> {
        let here = self.here(online);
        if self.remotes.is_empty() || (self.strategy == Strategy::LocalFirst && here > 0) {
            return (here > 0).then_some(own);
        }
        if self.strategy == Strategy::Sticky
            && let Some(shard) = self.sticky_shard
            && self.members_of(shard, own, online) > 0
        {
            return Some(shard);
        }
        let total = here
            + self
                .remotes
                .iter()
                .map(|remote| remote.members(online))
                .sum::<u32>();
        let slot = self.slot(total, publisher, topic)?;
        let shard = self.shard_at(slot, Some(own), online, u64::MAX);
        self.sticky_shard = shard;
        shard
    }

    /// A number below `total` by the group's strategy; none if there is nobody.
    fn slot(&mut self, total: u32, publisher: Publisher, topic: &str) -> Option<u32> {
        if total == 0 {
            return None;
        }
        Some(match self.strategy {
            Strategy::RoundRobin | Strategy::LocalFirst | Strategy::Sticky => {
                take_turn(&mut self.turn, total)
            }
            Strategy::Random => reduce(scatter(publisher.rng), total),
            Strategy::HashClient => reduce(scatter(publisher.client_id_hash), total),
            Strategy::HashTopic => reduce(scatter(stable(topic)), total),
        })
    }

    /// The shard whose members include number `slot`, counted over the shards of `among` in order; `own` is one of them if
    /// given.
    fn shard_at(
        &self,
        mut slot: u32,
        own: Option<ShardId>,
        online: bool,
        among: u64,
    ) -> Option<ShardId> {
        let mut own = own.map(|own| (own, self.here(online)));
        let allowed = self.remotes.iter();
        for remote in allowed.filter(|remote| remote.shard.bit() & among != 0) {
            for (shard, members) in own
                .take_if(|(own, _)| *own < remote.shard)
                .into_iter()
                .chain([(remote.shard, remote.members(online))])
            {
                if slot < members {
                    return Some(shard);
                }
                slot -= members;
            }
        }
        own.filter(|(_, members)| slot < *members)
            .map(|(own, _)| own)
    }

    fn remote(&self, shard: ShardId) -> Option<Choice> {
        let remote = self.remotes.iter().find(|remote| remote.shard == shard)?;
        Some(Choice::Shard {
            shard,
            persistent: remote.persistent,
        })
    }

    /// A member here that is connected, or one that is not.
    fn member(
        &mut self,
        online: bool,
        publisher: Publisher,
        topic: &str,
        except: &[ClientKey],
    ) -> Option<Choice> {
        let members = self.here(online);
        let base = if online { 0 } else { self.online };
        if members == 0 {
            return None;
        }
        let first = match self.strategy {
            Strategy::RoundRobin | Strategy::LocalFirst => {
                take_turn(&mut self.member_turn, members)
            }
            Strategy::Sticky => match self.sticky_member.checked_sub(base) {
                Some(member) if member < members => member,
                _ => take_turn(&mut self.member_turn, members),
            },
            // Other bits than those that chose the shard, so that each member has its share.
            Strategy::Random => reduce(scatter(!publisher.rng), members),
            Strategy::HashClient => reduce(scatter(!publisher.client_id_hash), members),
            Strategy::HashTopic => reduce(scatter(!stable(topic)), members),
        };
        // At most all of `except` stand in the way of the next one.
        let tries = members.min(
            u32::try_from(except.len())
                .unwrap_or(u32::MAX)
                .saturating_add(1),
        );
        let chosen = (0..tries)
            .map(|step| base + ((u64::from(first) + u64::from(step)) % u64::from(members)) as u32)
            .find(|at| !except.contains(&self.members.at(*at).client))?;
        self.sticky_member = chosen;
        let member = self.members.at(chosen);
        if chosen - base != first
            && matches!(self.strategy, Strategy::RoundRobin | Strategy::LocalFirst)
        {
            self.member_turn = chosen - base + 1;
        }
        Some(Choice::Local {
            client: member.client,
            sub: member.sub.into(),
            online,
        })
    }
}

/// The turn among `total`, which moves on.
fn take_turn(turn: &mut u32, total: u32) -> u32 {
    let slot = if *turn < total { *turn } else { 0 };
    *turn = slot + 1;
    slot
}
