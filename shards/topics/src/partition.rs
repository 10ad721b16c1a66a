// SPDX-License-Identifier: Apache-2.0
//! One shard's subscriptions and what it knows of the other shards'.

use corqtt_codec::{TopicFilter, TopicName};
use smallvec::SmallVec;

use crate::filters::Filters;
use crate::groups::{Groups, Strategy};
use crate::hash::TextHash;
use crate::interest::{Interest, ShardId, Want};
use crate::matches::{Choice, GroupHit, Hit, Matches, Publisher};
use crate::remotes::{self, ShardSets};
use crate::slab::NONE;
use crate::subscribers::Subscriber;
use crate::subscription::{ClientKey, Subscription};
use crate::trie::Trie;

/// One shard's partition of the trie; owned by that shard.
///
/// A client is declared with [`Self::client_changed`] before it subscribes, and again whenever it connects or
/// disconnects or its session becomes persistent or ceases to be. Every call that changes what other shards must know
/// appends the new truth to `changes`, and nothing otherwise; the caller sends these to all of them in order.
#[derive(Debug)]
pub struct Partition {
    own: ShardId,
    shards: u8,
    filters: Filters,
    trie: Trie,
    groups: Groups,
    remotes: ShardSets,
    clients: Vec<Client>,
    /// Subscriptions of all clients.
    subscriptions: usize,
    /// The entries that the topic in hand matches; kept for its memory.
    found: Vec<u32>,
    /// Per client, the look in which it was last hit, and where its hit is. Used only where filters overlap.
    stamps: Vec<Stamp>,
    look: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stamp {
    look: u32,
    hit: u32,
}

#[derive(Debug, Default)]
struct Client {
    slots: SmallVec<[Slot; 2]>,
    /// How many of them are memberships of groups.
    memberships: u32,
    persistent: bool,
    online: bool,
}

const _: () = assert!(size_of::<Client>() == 32);

/// One subscription in its client's list.
#[derive(Clone, Copy, Debug)]
struct Slot {
    target: Target,
    /// Position among the subscribers of the target.
    position: u32,
}

const _: () = assert!(size_of::<Slot>() == 8);

/// The number of an entry, or with the highest bit that of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target(u32);

const GROUP_BIT: u32 = 1 << 31;

enum Kind {
    Plain(u32),
    Group(u32),
}

impl Target {
    fn plain(entry: u32) -> Self {
        assert!(entry < GROUP_BIT, "a shard holds fewer than 2^31 filters");
        Self(entry)
    }

    fn group(group: u32) -> Self {
        assert!(group < GROUP_BIT, "a shard holds fewer than 2^31 groups");
        Self(group | GROUP_BIT)
    }

    const fn kind(self) -> Kind {
        if self.0 & GROUP_BIT == 0 {
            Kind::Plain(self.0)
        } else {
            Kind::Group(self.0 & !GROUP_BIT)
        }
    }
}

/// Whether a publisher must wait for a subscriber.
fn waits(clients: &[Client], subscriber: &Subscriber) -> bool {
    clients[subscriber.client.0 as usize].persistent && subscriber.sub.acknowledged()
}

/// Tells the clients' lists where their subscribers are now.
fn moved(clients: &mut [Client]) -> impl FnMut(Subscriber, u32) {
    |subscriber, position| {
        if let Some(slot) = clients[subscriber.client.0 as usize]
            .slots
            .get_mut(subscriber.slot as usize)
        {
            slot.position = position;
        }
    }
}

impl Partition {
    /// An empty one for shard `own` of `shards`. `hash_seed` must be one that clients cannot know; `strategy` is that
    /// of shared groups without their own.
    ///
    /// # Panics
    /// If there are more than 64 shards or `own` is not one of them.
    #[must_use]
    pub fn new(own: ShardId, shards: u8, hash_seed: u64, strategy: Strategy) -> Self {
        assert!(shards <= 64, "a set of shards is 64 bits");
        assert!(own.0 < shards, "a shard is one of the shards");
        let hash = TextHash::new(hash_seed);
        Self {
            own,
            shards,
            filters: Filters::new(hash.clone()),
            trie: Trie::new(hash.clone()),
            groups: Groups::new(own, hash, strategy),
            remotes: ShardSets::new(),
            clients: Vec::new(),
            subscriptions: 0,
            found: Vec::new(),
            stamps: Vec::new(),
            look: 0,
        }
    }

    /// From now on the groups of this name choose by `strategy`.
    pub fn set_group_strategy(&mut self, group: &str, strategy: Strategy) {
        self.groups.set_strategy(group, strategy);
    }

    /// Declares a client, or says what became of it. `persistent`: its session outlives the connection.
    ///
    /// Constant time, unless `persistent` changes or the client is in shared groups: then linear in its subscriptions.
    pub fn client_changed(
        &mut self,
        client: ClientKey,
        persistent: bool,
        online: bool,
        changes: &mut Vec<Interest>,
    ) {
        let at = client.0 as usize;
        if at >= self.clients.len() {
            self.clients.resize_with(at + 1, Client::default);
        }
        let state = &mut self.clients[at];
        let (was_persistent, was_online) = (state.persistent, state.online);
        state.persistent = persistent;
        state.online = online;
        let only_groups = persistent == was_persistent;
        if only_groups && (online == was_online || state.memberships == 0) {
            return;
        }
        for slot in 0..self.clients[at].slots.len() {
            let Slot { target, position } = self.clients[at].slots[slot];
            match target.kind() {
                Kind::Plain(_) if only_groups => {}
                Kind::Plain(entry) => {
                    let acknowledged = self.filters.subscribers(entry)[position as usize]
                        .sub
                        .acknowledged();
                    // The want before is not to be had from the lone subscriber's client: it has changed already.
                    let before = Want::Plain {
                        any: true,
                        persistent: match self.filters.subscribers(entry) {
                            [_] => was_persistent && acknowledged,
                            _ => self.persistent(entry),
                        },
                    };
                    self.filters.count_persistent(
                        entry,
                        was_persistent && acknowledged,
                        persistent && acknowledged,
                    );
                    self.plain_changed(entry, before, changes);
                }
                Kind::Group(group) => {
                    let known = self.groups.group_mut(group);
                    let before = known.want();
                    let acknowledged = known.member_at(position).sub.acknowledged();
                    known.count_persistent(
                        was_persistent && acknowledged,
                        persistent && acknowledged,
                    );
                    known.set_online(position, online, &mut moved(&mut self.clients));
                    self.group_changed(group, before, changes);
                }
            }
        }
    }

    /// Subscribes, or replaces the options of the same filter `[MQTT-3.8.4-3] [MQTT5-3.8.4-3]`; whether it is new.
    ///
    /// # Panics
    /// If the client was not declared.
    pub fn subscribe(
        &mut self,
        client: ClientKey,
        filter: TopicFilter<'_>,
        sub: Subscription,
        changes: &mut Vec<Interest>,
    ) -> bool {
        let slot = self.clients[client.0 as usize].slots.len() as u32;
        let subscriber = Subscriber {
            client,
            slot,
            sub: sub.into(),
        };
        let new = if filter.group().is_some() {
            self.join(filter, subscriber, changes)
        } else {
            self.subscribe_plain(filter, subscriber, changes)
        };
        self.subscriptions += usize::from(new);
        new
    }

    fn subscribe_plain(
        &mut self,
        filter: TopicFilter<'_>,
        new: Subscriber,
        changes: &mut Vec<Interest>,
    ) -> bool {
        let entry = self.find_or_insert(filter);
        let before = self.plain_want(entry);
        let known = self.filters.position(entry, new.client);
        if let Some(position) = known {
            let clients = &self.clients;
            let subscriber = self.filters.subscriber_mut(entry, position);
            let was = waits(clients, subscriber);
            // [MQTT-3.8.4-3] [MQTT5-3.8.4-3] in its place, so that no message is missed meanwhile
            subscriber.sub = new.sub;
            let is = waits(clients, subscriber);
            self.filters.count_persistent(entry, was, is);
        } else {
            let clients = &self.clients;
            let position = self
                .filters
                .subscribe(entry, new, |subscriber| waits(clients, subscriber));
            self.clients[new.client.0 as usize].slots.push(Slot {
                target: Target::plain(entry),
                position,
            });
        }
        self.plain_changed(entry, before, changes);
        known.is_none()
    }

    fn join(
        &mut self,
        filter: TopicFilter<'_>,
        new: Subscriber,
        changes: &mut Vec<Interest>,
    ) -> bool {
        let group = self.group_or_insert(filter);
        let state = &self.clients[new.client.0 as usize];
        let (persistent, online) = (state.persistent, state.online);
        let known = self.groups.group_mut(group);
        let before = known.want();
        let is = persistent && new.sub.acknowledged();
        let position = known.position(new.client);
        if let Some(position) = position {
            let member = known.member_at_mut(position);
            let was = persistent && member.sub.acknowledged();
            member.sub = new.sub;
            known.count_persistent(was, is);
        } else {
            let client = &mut self.clients[new.client.0 as usize];
            client.slots.push(Slot {
                target: Target::group(group),
                position: 0,
            });
            client.memberships += 1;
            known.count_persistent(false, is);
            known.join(new, online, &mut moved(&mut self.clients));
        }
        self.group_changed(group, before, changes);
        position.is_none()
    }

    /// Ends the subscription of exactly this filter; whether there was one `[MQTT-3.10.4-1] [MQTT5-3.10.4-1]`. From
    /// now on it adds nothing for the client `[MQTT-3.10.4-2] [MQTT5-3.10.4-2]`.
    pub fn unsubscribe(
        &mut self,
        client: ClientKey,
        filter: TopicFilter<'_>,
        changes: &mut Vec<Interest>,
    ) -> bool {
        let Some(slot) = self.slot_of(client, filter) else {
            return false;
        };
        self.end(client, slot, changes);
        true
    }

    /// Whether a client subscribes to this very filter.
    #[must_use]
    pub fn is_subscribed(&self, client: ClientKey, filter: TopicFilter<'_>) -> bool {
        self.slot_of(client, filter).is_some()
    }

    fn slot_of(&self, client: ClientKey, filter: TopicFilter<'_>) -> Option<u32> {
        if filter.group().is_some() {
            let group = self.groups.group(self.groups.find(filter.full())?);
            Some(group.member_at(group.position(client)?).slot)
        } else {
            // [MQTT-3.10.4-1] [MQTT5-3.10.4-1] the bytes as they are
            let entry = self.filters.find(filter.filter())?;
            let position = self.filters.position(entry, client)?;
            Some(self.filters.subscribers(entry)[position as usize].slot)
        }
    }

    /// Ends all subscriptions of a client; its key may be used again.
    pub fn remove_client(&mut self, client: ClientKey, changes: &mut Vec<Interest>) {
        self.remove_client_step(client, usize::MAX, changes);
    }

    /// Ends at most `work_max` subscriptions of a client that is to be removed; whether it is removed now.
    pub fn remove_client_step(
        &mut self,
        client: ClientKey,
        work_max: usize,
        changes: &mut Vec<Interest>,
    ) -> bool {
        let Some(state) = self.clients.get(client.0 as usize) else {
            return true;
        };
        let slots = state.slots.len();
        // From the end, so that no other slot moves.
        for slot in (slots.saturating_sub(work_max)..slots).rev() {
            self.end(client, slot as u32, changes);
        }
        let state = &mut self.clients[client.0 as usize];
        let done = state.slots.is_empty();
        if done {
            *state = Client::default();
        }
        done
    }

    /// Takes a client out of at most `work_max` shared groups, so that none of them chooses it any more; whether it is
    /// in none now.
    pub fn leave_groups_step(
        &mut self,
        client: ClientKey,
        work_max: usize,
        changes: &mut Vec<Interest>,
    ) -> bool {
        let Some(state) = self.clients.get(client.0 as usize) else {
            return true;
        };
        let mut left = work_max;
        // from the end: what takes the place of one that goes was looked at
        for slot in (0..state.slots.len()).rev() {
            let state = &self.clients[client.0 as usize];
            if left == 0 || state.memberships == 0 {
                break;
            }
            if matches!(state.slots[slot].target.kind(), Kind::Group(_)) {
                self.end(client, slot as u32, changes);
                left -= 1;
            }
        }
        self.clients[client.0 as usize].memberships == 0
    }

    /// A client's subscriptions with their whole filters, in no order.
    pub fn subscriptions(&self, client: ClientKey) -> impl Iterator<Item = (&str, Subscription)> {
        let slots = self
            .clients
            .get(client.0 as usize)
            .map_or(&[][..], |state| &state.slots);
        slots.iter().map(|slot| match slot.target.kind() {
            Kind::Plain(entry) => {
                let subscriber = &self.filters.subscribers(entry)[slot.position as usize];
                (
                    self.filters.entry(entry).filter.as_str(),
                    subscriber.sub.into(),
                )
            }
            Kind::Group(group) => {
                let group = self.groups.group(group);
                (&*group.full, group.member_at(slot.position).sub.into())
            }
        })
    }

    /// How many subscriptions a client has.
    #[must_use]
    pub fn subscription_count(&self, client: ClientKey) -> usize {
        self.clients
            .get(client.0 as usize)
            .map_or(0, |state| state.slots.len())
    }

    /// How many subscriptions this shard's clients have.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.subscriptions
    }

    /// This shard's clients have no subscriptions.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.subscriptions == 0
    }

    /// What another shard wants from now on. A filter that is none is ignored.
    ///
    /// # Panics
    /// If `from` is this shard or none of the shards.
    pub fn apply_interest(&mut self, from: ShardId, interest: &Interest) {
        assert!(from != self.own, "a shard is told what the others want");
        assert!(from.0 < self.shards, "a shard is one of the shards");
        let Ok(filter) = TopicFilter::parse(&interest.filter) else {
            return;
        };
        match interest.want {
            Want::Plain { any, persistent } => {
                let entry = if any {
                    self.find_or_insert(filter)
                } else if let Some(entry) = self.filters.find(filter.filter()) {
                    entry
                } else {
                    return;
                };
                let at = self.filters.entry(entry).remotes;
                let mut set = self.remotes.set(at);
                set.shards &= !from.bit();
                set.persistent &= !from.bit();
                if any {
                    set.shards |= from.bit();
                }
                if any && persistent {
                    set.persistent |= from.bit();
                }
                self.filters.entry_mut(entry).remotes = self.remotes.replace(at, set);
                self.release(entry);
            }
            Want::Group {
                online,
                offline,
                persistent,
            } => {
                let group = if online > 0 || offline > 0 {
                    self.group_or_insert(filter)
                } else if let Some(group) = self.groups.find(filter.full()) {
                    group
                } else {
                    return;
                };
                self.groups
                    .group_mut(group)
                    .set_remote(from, online, offline, persistent);
                self.release_group(group);
            }
        }
    }

    /// Everyone who gets a message published to `topic` on this shard: those with a filter that matches
    /// `[MQTT-3.3.2-3] [MQTT5-3.3.2-3] [MQTT-4.5.0-1] [MQTT5-4.5.0-1]`.
    pub fn matches(&mut self, topic: TopicName<'_>, publisher: Publisher, out: &mut Matches) {
        out.clear();
        self.find(topic);
        for found in 0..self.found.len() {
            let entry = self.filters.entry(self.found[found]);
            if entry.remotes != remotes::EMPTY {
                let set = self.remotes.set(entry.remotes);
                out.shards |= set.shards;
                out.shards_persistent |= set.persistent;
            }
            let mut group = entry.groups;
            while group != NONE {
                if let Some(choice) = self.groups.choose(group, publisher, topic.as_str()) {
                    let filter = self.groups.group(group).full.clone();
                    out.groups.push(GroupHit { choice, filter });
                }
                group = self.groups.group(group).next;
            }
        }
        self.hit_local(publisher, out);
    }

    /// Everyone with a plain subscription, of the other shards those in `among` only: what is left to do for a message
    /// from another shard (none of them) or node (those of this one), which has chosen among groups.
    pub fn matches_plain(
        &mut self,
        topic: TopicName<'_>,
        publisher: Publisher,
        among: u64,
        out: &mut Matches,
    ) {
        out.clear();
        self.find(topic);
        if among != 0 {
            for entry in &self.found {
                let set = self.remotes.set(self.filters.entry(*entry).remotes);
                out.shards |= set.shards & among;
                out.shards_persistent |= set.persistent & among;
            }
        }
        self.hit_local(publisher, out);
    }

    /// Another member of a shared group, or the first one where another shard left the choice to this one:
    /// somebody connected here, somebody connected elsewhere, then those not connected in the same order. `except` are
    /// members here that had their chance, `among` the other shards that may get it. None if there is nobody.
    pub fn choose_member(
        &mut self,
        full_filter: &str,
        publisher: Publisher,
        topic: TopicName<'_>,
        except: &[ClientKey],
        among: u64,
    ) -> Option<Choice> {
        let group = self.groups.find(full_filter)?;
        self.groups
            .choose_again(group, publisher, topic.as_str(), except, among)
    }

    fn find(&mut self, topic: TopicName<'_>) {
        self.found.clear();
        // [MQTT-4.7.3-4] [MQTT5-4.7.3-4] the bytes as they are
        if let Some(entry) = self.filters.find(topic.as_str()) {
            self.found.push(entry);
        }
        if !self.trie.is_empty() {
            self.trie.walk(topic.as_str(), &mut self.found);
        }
    }

    fn hit_local(&mut self, publisher: Publisher, out: &mut Matches) {
        let filters = &self.filters;
        if self.found.len() > 1 {
            self.found
                .retain(|entry| !filters.subscribers(*entry).is_empty());
        }
        match self.found.as_slice() {
            [] => {}
            [entry] => hit_once(self.filters.subscribers(*entry), publisher, out),
            _ => self.hit_overlapping(publisher, out),
        }
    }

    /// [MQTT-3.3.5-1] [MQTT5-3.3.4-2] One delivery with the highest QoS of the overlapping subscriptions, and all their
    /// identifiers.
    fn hit_overlapping(&mut self, publisher: Publisher, out: &mut Matches) {
        self.stamps.resize(self.clients.len(), Stamp::default());
        self.look = self.look.wrapping_add(1);
        if self.look == 0 {
            self.stamps.fill(Stamp::default());
            self.look = 1;
        }
        for entry in &self.found {
            for Subscriber { client, sub, .. } in self.filters.subscribers(*entry) {
                // [MQTT5-3.8.3-3]
                if sub.no_local() && publisher.client == Some(*client) {
                    continue;
                }
                let stamp = &mut self.stamps[client.0 as usize];
                if stamp.look == self.look {
                    let hit = &mut out.hits[stamp.hit as usize];
                    hit.qos = hit.qos.max(sub.qos());
                    hit.retain_as_published |= sub.retain_as_published();
                } else {
                    *stamp = Stamp {
                        look: self.look,
                        hit: out.hits.len() as u32,
                    };
                    out.hits.push(Hit {
                        client: *client,
                        ids_start: 0,
                        ids_len: 0,
                        qos: sub.qos(),
                        retain_as_published: sub.retain_as_published(),
                    });
                }
                // [MQTT5-3.3.4-3] [MQTT5-3.3.4-4]
                if let Some(id) = sub.id() {
                    out.hits[stamp.hit as usize].ids_len += 1;
                    out.gathered_ids.push((stamp.hit, id.get()));
                }
            }
        }
        out.place_ids();
    }

    /// Removes subscription `slot` of a client, everywhere.
    fn end(&mut self, client: ClientKey, slot: u32, changes: &mut Vec<Interest>) {
        let Slot { target, position } = self.clients[client.0 as usize].slots[slot as usize];
        // The target first: while it rearranges its subscribers, all of them have their slots.
        match target.kind() {
            Kind::Plain(entry) => {
                let before = self.plain_want(entry);
                let clients = &self.clients;
                let other = self
                    .filters
                    .unsubscribe(entry, position, |subscriber| waits(clients, subscriber));
                if let Some(other) = other {
                    moved(&mut self.clients)(other, position);
                }
                self.plain_changed(entry, before, changes);
                self.release(entry);
            }
            Kind::Group(group) => {
                let state = &mut self.clients[client.0 as usize];
                state.memberships -= 1;
                let persistent = state.persistent;
                let known = self.groups.group_mut(group);
                let before = known.want();
                let was = persistent && known.member_at(position).sub.acknowledged();
                known.count_persistent(was, false);
                known.leave(position, &mut moved(&mut self.clients));
                self.group_changed(group, before, changes);
                self.release_group(group);
            }
        }
        self.subscriptions -= 1;
        let slots = &mut self.clients[client.0 as usize].slots;
        slots.swap_remove(slot as usize);
        if slots.spilled() && slots.len() < slots.capacity() / 4 {
            slots.shrink_to_fit();
        }
        if let Some(Slot { target, position }) = slots.get(slot as usize) {
            match target.kind() {
                Kind::Plain(entry) => self.filters.subscriber_mut(entry, *position).slot = slot,
                Kind::Group(group) => {
                    self.groups.group_mut(group).member_at_mut(*position).slot = slot
                }
            }
        }
    }

    fn find_or_insert(&mut self, filter: TopicFilter<'_>) -> u32 {
        let (entry, new) = self.filters.find_or_insert(filter.filter());
        if new && filter.has_wildcard() {
            self.trie.insert(filter.filter(), entry);
        }
        entry
    }

    fn group_or_insert(&mut self, filter: TopicFilter<'_>) -> u32 {
        self.groups.find(filter.full()).unwrap_or_else(|| {
            let entry = self.find_or_insert(filter);
            let first = &mut self.filters.entry_mut(entry).groups;
            *first = self.groups.insert(filter.full(), entry, *first);
            *first
        })
    }

    fn release_group(&mut self, group: u32) {
        if let Some((entry, first)) = self.groups.remove_if_empty(group) {
            if let Some(first) = first {
                self.filters.entry_mut(entry).groups = first;
            }
            self.release(entry);
        }
    }

    fn release(&mut self, entry: u32) {
        if let Some(filter) = self.filters.remove_if_unwanted(entry)
            && filter.contains(['+', '#'])
        {
            self.trie.remove(&filter);
        }
    }

    fn persistent(&self, entry: u32) -> bool {
        self.filters
            .persistent(entry, |subscriber| waits(&self.clients, subscriber))
    }

    fn plain_want(&self, entry: u32) -> Want {
        Want::Plain {
            any: !self.filters.subscribers(entry).is_empty(),
            persistent: self.persistent(entry),
        }
    }

    fn plain_changed(&self, entry: u32, before: Want, changes: &mut Vec<Interest>) {
        let want = self.plain_want(entry);
        if want != before {
            changes.push(Interest {
                filter: self.filters.entry(entry).filter.clone(),
                want,
            });
        }
    }

    fn group_changed(&self, group: u32, before: Want, changes: &mut Vec<Interest>) {
        let group = self.groups.group(group);
        let want = group.want();
        if want != before {
            changes.push(Interest {
                filter: (*group.full).into(),
                want,
            });
        }
    }
}

/// The hits of one filter: no client comes twice.
fn hit_once(subscribers: &[Subscriber], publisher: Publisher, out: &mut Matches) {
    for Subscriber { client, sub, .. } in subscribers {
        // [MQTT5-3.8.3-3]
        if sub.no_local() && publisher.client == Some(*client) {
            continue;
        }
        let ids_start = out.ids.len() as u32;
        out.ids.extend(sub.id().map(std::num::NonZeroU32::get));
        out.hits.push(Hit {
            client: *client,
            ids_start,
            ids_len: out.ids.len() as u32 - ids_start,
            qos: sub.qos(),
            retain_as_published: sub.retain_as_published(),
        });
    }
}

#[cfg(test)]
mod tests;
