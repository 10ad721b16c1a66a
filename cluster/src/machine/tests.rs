// SPDX-License-Identifier: Apache-2.0
use super::*;

const A: NodeId = node(1);
const B: NodeId = node(2);
const C: NodeId = node(3);

const fn node(id: u64) -> NodeId {
    NodeId(NonZeroU64::new(id).expect("it is not 0"))
}

const PERSISTENT: Option<Want> = Some(Want::Plain { persistent: true });
const PLAIN: Option<Want> = Some(Want::Plain { persistent: false });

/// The machines of all nodes, fed with the same log.
struct Cluster {
    machines: Vec<Machine>,
    index: u64,
    /// Of the last claim.
    claims: u64,
}

impl Cluster {
    /// Three members that have started.
    fn new() -> Self {
        let mut cluster = Self {
            machines: [A, B, C].map(Machine::new).into(),
            index: 0,
            claims: 0,
        };
        for (node, name) in [(A, "a"), (B, "b"), (C, "c")] {
            let name = name.into();
            assert_eq!(cluster.apply(Entry::Joined { node, name }), Answer::Done);
            cluster.start(node, 1, &[], &[]);
        }
        cluster.outputs();
        cluster
    }

    fn apply(&mut self, entry: Entry) -> Answer {
        self.index += 1;
        let answers: Vec<_> = self
            .machines
            .iter_mut()
            .map(|machine| machine.apply(self.index, entry.clone()))
            .collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]));
        let tables = |machine: &Machine| {
            (
                machine.route_numbers(),
                machine.client_numbers(),
                machine.will_numbers(),
            )
        };
        let same = tables(&self.machines[0]);
        assert!(self.machines.iter().all(|machine| tables(machine) == same));
        answers[0].clone()
    }

    /// What each node has to do, since it was asked last.
    fn outputs(&mut self) -> Vec<(NodeId, Output)> {
        let each = |machine: &mut Machine| {
            let me = machine.me;
            let outputs = machine.poll_output().into_iter();
            outputs
                .filter(|output| *output != Output::Members)
                .map(move |output| (me, output))
        };
        self.machines.iter_mut().flat_map(each).collect()
    }

    fn series(
        &mut self,
        node: NodeId,
        boot: u64,
        sessions: &[&str],
        deltas: &[Delta],
        part: u32,
        is_last: bool,
    ) -> Answer {
        self.apply(Entry::Rows {
            node,
            boot: Boot(boot),
            rows: Rows::Series {
                part,
                is_last,
                sessions: sessions
                    .iter()
                    .map(|id| ((*id).into(), None, 3600))
                    .collect(),
                deltas: deltas.to_vec(),
            },
        })
    }

    fn start(&mut self, node: NodeId, boot: u64, sessions: &[&str], deltas: &[Delta]) {
        assert_eq!(
            self.series(node, boot, sessions, deltas, 0, true),
            Answer::Done
        );
    }

    fn deltas(&mut self, node: NodeId, boot: u64, first: u64, deltas: &[Delta]) -> Answer {
        self.apply(Entry::Rows {
            node,
            boot: Boot(boot),
            rows: Rows::Deltas {
                first,
                deltas: deltas.to_vec(),
            },
        })
    }

    /// A claim, with the number of its connection.
    fn claim(
        &mut self,
        node: NodeId,
        client_id: &str,
        clean_start: bool,
        expiry_secs: u32,
    ) -> Verdict {
        self.claims += 1;
        let claim = claim(node, client_id, self.claims, clean_start, expiry_secs);
        match self.apply(Entry::Claim(claim)) {
            Answer::Claim(verdict) => verdict,
            other => panic!("{other:?}"),
        }
    }

    fn dead(&mut self, node: NodeId, boot: u64) {
        let boot = Boot(boot);
        assert_eq!(self.apply(Entry::NodeDead { node, boot }), Answer::Done);
    }

    fn rows(&self) -> (usize, usize, usize) {
        let machine = &self.machines[0];
        (
            machine.route_numbers().rows,
            machine.client_numbers().rows,
            machine.will_numbers().rows,
        )
    }
}

/// Of connection `number`.
fn claim(node: NodeId, client_id: &str, number: u64, clean_start: bool, expiry_secs: u32) -> Claim {
    Claim {
        node,
        boot: Boot(1),
        number,
        answered: 0,
        client_id: client_id.into(),
        user: None,
        connection: number,
        clean_start,
        expiry_secs,
    }
}

fn ended(client_id: &str, epoch: u64) -> Delta {
    let client_id = client_id.into();
    Delta::Ended { client_id, epoch }
}

fn taken(client_id: &str, connection: u64) -> Output {
    Output::Taken {
        client_id: client_id.into(),
        boot: Boot(1),
        connection,
    }
}

fn sent(id: WillId, client_id: &str) -> Delta {
    let client_id = client_id.into();
    Delta::WillSent { id, client_id }
}

/// Who is to send which will, after how long.
fn dues(outputs: &[(NodeId, Output)]) -> Vec<(NodeId, WillId, u32)> {
    let due = |(to, output): &(NodeId, Output)| match output {
        Output::WillDue { id, will, .. } => Some((*to, *id, will.delay_secs)),
        _ => None,
    };
    outputs.iter().filter_map(due).collect()
}

fn route(filter: &str, want: Option<Want>) -> Delta {
    let filter = filter.into();
    Delta::Route { filter, want }
}

fn connected(client_id: &str, connection: u64, since: u64) -> Delta {
    Delta::Connected {
        client_id: client_id.into(),
        user: None,
        connection,
        since,
    }
}

fn disconnected(client_id: &str, connection: u64) -> Delta {
    let client_id = client_id.into();
    Delta::Disconnected {
        client_id,
        connection,
    }
}

fn will(client_id: &str, delay_secs: u32) -> Delta {
    Delta::Will {
        client_id: client_id.into(),
        will: Some(Will {
            delay_secs,
            message: b"gone".to_vec(),
        }),
    }
}

fn told(node: NodeId, filter: &str, want: Option<Want>) -> Output {
    let filter = filter.into();
    Output::Route { node, filter, want }
}

#[test]
fn a_route_is_told_to_all_others_and_only_when_it_changes() {
    let mut cluster = Cluster::new();
    cluster.deltas(A, 1, 1, &[route("t/#", PLAIN)]);
    cluster.deltas(A, 1, 2, &[route("t/#", PLAIN)]);
    let output = told(A, "t/#", PLAIN);
    assert_eq!(cluster.outputs(), [(B, output.clone()), (C, output)]);
    cluster.deltas(A, 1, 3, &[route("t/#", None)]);
    let output = told(A, "t/#", None);
    assert_eq!(cluster.outputs(), [(B, output.clone()), (C, output)]);
    assert_eq!(cluster.rows(), (0, 0, 0));
}

#[test]
fn deltas_that_are_repeated_change_nothing_and_gaps_are_refused() {
    let mut cluster = Cluster::new();
    let deltas = [route("1", PLAIN), route("2", PLAIN), route("1", None)];
    assert_eq!(cluster.deltas(A, 1, 1, &deltas[..2]), Answer::Done);
    assert_eq!(cluster.deltas(A, 1, 1, &deltas), Answer::Done);
    assert_eq!(cluster.deltas(A, 1, 1, &deltas), Answer::Done);
    assert_eq!(cluster.rows(), (1, 0, 0));
    let gap = Answer::Refused(Refusal::Gap { next: 4 });
    assert_eq!(cluster.deltas(A, 1, 5, &deltas), gap);
    let other = Answer::Refused(Refusal::OtherBoot {
        current: Some(Boot(1)),
    });
    assert_eq!(cluster.deltas(A, 2, 4, &deltas), other);
    assert_eq!(cluster.rows(), (1, 0, 0));
}

#[test]
fn a_node_that_starts_anew_replaces_what_it_said_before() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "stays", false, 3600);
    cluster.claim(A, "goes", false, 3600);
    cluster.deltas(
        A,
        1,
        1,
        &[
            route("old", PERSISTENT),
            route("both", PERSISTENT),
            route("clean", PLAIN),
        ],
    );
    cluster.outputs();
    let parts = [route("both", PERSISTENT)];
    assert_eq!(
        cluster.series(A, 2, &["stays"], &parts, 0, false),
        Answer::Done
    );
    // what its connections wanted is gone at once, what its store has waits for the rest of the series
    let outputs = cluster.outputs();
    assert!(outputs.contains(&(B, told(A, "clean", None))));
    assert!(!outputs.contains(&(B, told(A, "old", None))));
    // it is the new start that says so
    assert!(
        !outputs
            .iter()
            .any(|(_, output)| matches!(output, Output::Died { .. }))
    );
    let gap = Answer::Refused(Refusal::Gap { next: 0 });
    assert_eq!(cluster.deltas(A, 2, 1, &[]), gap);
    assert_eq!(
        cluster.series(A, 2, &[], &[route("new", PLAIN)], 2, false),
        Answer::Refused(Refusal::Gap { next: 1 })
    );
    assert_eq!(
        cluster.series(A, 2, &[], &[route("new", PLAIN)], 1, true),
        Answer::Done
    );
    let (old, new) = (told(A, "old", None), told(A, "new", PLAIN));
    assert_eq!(
        cluster.outputs(),
        [(B, new.clone()), (B, old.clone()), (C, new), (C, old)]
    );
    let machine = &cluster.machines[1];
    assert_eq!(
        machine.client("stays").map(ClientRow::holder),
        Some(Some(A))
    );
    assert_eq!(machine.client("goes"), None);
    // of the former start
    let other = Answer::Refused(Refusal::OtherBoot {
        current: Some(Boot(2)),
    });
    assert_eq!(cluster.series(A, 1, &[], &[], 0, true), other);
    assert_eq!(cluster.series(A, 2, &[], &[], 1, true), Answer::Done);
}

#[test]
fn a_dead_node_leaves_what_its_store_has() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "kept", false, 3600);
    let group = |clean, kept, offline| {
        Some(Want::Group {
            clean,
            kept,
            offline,
            persistent: kept + offline > 0,
        })
    };
    let deltas = [
        connected("clean", 1, cluster.index),
        route("plain", PLAIN),
        route("persistent", PERSISTENT),
        route("$share/g/clean", group(2, 0, 0)),
        route("$share/g/mixed", group(2, 1, 3)),
    ];
    cluster.deltas(A, 1, 1, &deltas);
    cluster.outputs();
    cluster.dead(A, 1);
    let outputs = cluster.outputs();
    let of = |node| {
        outputs
            .iter()
            .filter(move |(to, _)| *to == node)
            .map(|(_, output)| output.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(A), [Output::Died { boot: Boot(1) }]);
    let gone = [
        told(A, "$share/g/clean", None),
        told(A, "$share/g/mixed", group(0, 0, 4)),
        told(A, "plain", None),
    ];
    assert_eq!(of(B), gone);
    assert_eq!(of(C), gone);
    let kept = cluster.machines[1].client("kept").expect("it is kept");
    assert_eq!((kept.connected, kept.holder()), (None, Some(A)));
    assert_eq!(cluster.machines[1].client("clean"), None);
    // once
    cluster.dead(A, 1);
    assert_eq!(cluster.outputs(), []);
    let other = Answer::Refused(Refusal::OtherBoot {
        current: Some(Boot(1)),
    });
    assert_eq!(cluster.deltas(A, 1, 6, &[route("late", PLAIN)]), other);
}

#[test]
fn a_removed_node_leaves_nothing() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "kept", false, 3600);
    cluster.deltas(A, 1, 1, &[route("persistent", PERSISTENT)]);
    cluster.dead(A, 1);
    cluster.outputs();
    assert_eq!(cluster.apply(Entry::NodeRemoved { node: A }), Answer::Done);
    let gone = told(A, "persistent", None);
    assert_eq!(cluster.outputs(), [(B, gone.clone()), (C, gone)]);
    assert_eq!(cluster.rows(), (0, 0, 0));
    let refused = Answer::Refused(Refusal::NoMember);
    assert_eq!(cluster.series(A, 2, &[], &[], 0, true), refused);
}

#[test]
fn two_members_have_two_names() {
    let mut cluster = Cluster::new();
    let entry = Entry::Joined {
        node: node(9),
        name: "b".into(),
    };
    assert_eq!(cluster.apply(entry), Answer::Refused(Refusal::NameTaken(B)));
    assert_eq!(cluster.machines[0].nodes().count(), 3);
}

#[test]
fn the_later_connection_of_a_client_closes_the_earlier_one() {
    let mut cluster = Cluster::new();
    cluster.deltas(A, 1, 1, &[connected("c", 5, cluster.index)]);
    assert_eq!(cluster.outputs(), []);
    let granted = cluster.claim(B, "c", true, 0);
    assert_eq!(
        granted,
        Verdict::Granted {
            epoch: cluster.index
        }
    );
    assert_eq!(cluster.outputs(), [(A, taken("c", 5))]);
    // what A says of the one that is closed is late
    cluster.deltas(A, 1, 2, &[disconnected("c", 5)]);
    assert_eq!(
        cluster.machines[0]
            .client("c")
            .and_then(|row| row.connected)
            .map(|(node, _)| node),
        Some(B)
    );
}

#[test]
fn a_connection_that_did_not_know_of_another_one_loses_to_it() {
    let mut cluster = Cluster::new();
    let before = cluster.index;
    cluster.deltas(A, 1, 1, &[connected("c", 1, before)]);
    cluster.deltas(B, 1, 1, &[connected("c", 7, before)]);
    assert_eq!(cluster.outputs(), [(B, taken("c", 7))]);
    // on its own node a client connects again as it likes
    cluster.deltas(A, 1, 2, &[connected("c", 2, before)]);
    assert_eq!(cluster.outputs(), []);
    cluster.deltas(A, 1, 3, &[disconnected("c", 1)]);
    assert_eq!(cluster.rows(), (0, 1, 0));
    cluster.deltas(A, 1, 4, &[disconnected("c", 2)]);
    assert_eq!(cluster.rows(), (0, 0, 0));
}

#[test]
fn a_session_that_another_node_holds_is_not_given_away_but_ended_by_a_clean_start() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "c", false, 3600);
    assert_eq!(cluster.claim(B, "c", false, 3600), Verdict::HeldBy(A));
    assert_eq!(cluster.outputs(), []);
    assert!(matches!(
        cluster.claim(A, "c", false, 3600),
        Verdict::Granted { .. }
    ));
    let connection = cluster.claims;
    let granted = cluster.claim(B, "c", true, 60);
    let epoch = cluster.index;
    assert_eq!(granted, Verdict::Granted { epoch });
    let client_id = "c".into();
    let over = Output::Ended { client_id, epoch };
    assert_eq!(cluster.outputs(), [(A, taken("c", connection)), (A, over)]);
    // what the former holder says of it is late
    cluster.deltas(A, 1, 1, &[ended("c", epoch - 1)]);
    assert_eq!(
        cluster.machines[2].client("c").and_then(ClientRow::holder),
        Some(B)
    );
}

#[test]
fn a_session_that_ended_while_its_holder_was_away_does_not_come_back_with_it() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "c", false, 3600);
    cluster.dead(A, 1);
    cluster.claim(B, "c", true, 0);
    let epoch = cluster.index;
    cluster.deltas(B, 1, 1, &[disconnected("c", cluster.claims)]);
    assert_eq!(cluster.rows().1, 0);
    cluster.outputs();
    // it names what its store has, and hears that it is over
    cluster.start(A, 2, &["c"], &[]);
    assert_eq!(cluster.rows().1, 0);
    let client_id: CompactString = "c".into();
    let over = Output::Ended { client_id, epoch };
    let bytes = cluster.machines[0].snapshot();
    let mut restored = Machine::restore(A, &bytes, None).expect("a snapshot");
    assert!(restored.poll_output().contains(&over));
    // until it says that it knows; then the client may have one there again
    cluster.deltas(A, 2, 1, &[ended("c", epoch)]);
    cluster.start(A, 3, &["c"], &[]);
    assert_eq!(cluster.rows().1, 1);
}

#[test]
fn a_session_that_ends_takes_its_row_along_but_not_that_of_the_next_one() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "c", false, 3600);
    let first = cluster.index;
    cluster.deltas(A, 1, 1, &[disconnected("c", cluster.claims)]);
    assert_eq!(cluster.rows(), (0, 1, 0));
    cluster.claim(A, "c", true, 3600);
    let second = cluster.index;
    cluster.deltas(A, 1, 2, &[ended("c", first)]);
    assert_eq!(cluster.rows(), (0, 1, 0));
    cluster.deltas(A, 1, 3, &[ended("c", second)]);
    assert_eq!(cluster.rows(), (0, 0, 0));
}

#[test]
fn a_claim_that_comes_twice_has_one_answer() {
    let mut cluster = Cluster::new();
    let first = claim(A, "c", 1, false, 3600);
    let granted = cluster.apply(Entry::Claim(first.clone()));
    cluster.claims = 1;
    let taken_over = cluster.claim(B, "c", true, 0);
    assert!(matches!(taken_over, Verdict::Granted { .. }));
    cluster.outputs();
    assert_eq!(cluster.apply(Entry::Claim(first.clone())), granted);
    assert_eq!(cluster.outputs(), []);
    assert_eq!(
        cluster.machines[0].client("c").and_then(ClientRow::holder),
        None
    );
    // once the node has the answer it is not kept
    let next = Claim {
        answered: 3,
        ..claim(A, "d", 3, false, 3600)
    };
    assert!(matches!(
        cluster.apply(Entry::Claim(next)),
        Answer::Claim(_)
    ));
    assert_eq!(
        cluster.apply(Entry::Claim(first)),
        Answer::Refused(Refusal::Answered)
    );
}

#[test]
fn a_connection_that_is_told_after_a_later_claim_of_its_node_is_late() {
    let mut cluster = Cluster::new();
    cluster.claims = 5;
    let since = cluster.index;
    cluster.claim(A, "c", false, 3600);
    cluster.deltas(A, 1, 1, &[connected("c", 5, since), disconnected("c", 5)]);
    let row = cluster.machines[1].client("c").expect("it is claimed");
    assert_eq!((row.connected, row.holder()), (Some((A, 6)), Some(A)));
}

#[test]
fn another_user_does_not_get_a_client_id() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "c", false, 3600);
    let answer = cluster.apply(Entry::Claim(Claim {
        user: Some("mallory".into()),
        ..claim(B, "c", 1, true, 0)
    }));
    assert_eq!(answer, Answer::Claim(Verdict::OtherUser));
    assert_eq!(cluster.outputs(), []);
}

#[test]
fn a_will_of_a_dead_node_is_due_at_one_live_node() {
    let mut cluster = Cluster::new();
    let clients: Vec<String> = (0..20).map(|n| format!("c{n}")).collect();
    let deltas: Vec<Delta> = clients
        .iter()
        .flat_map(|client| [connected(client, 1, 3), will(client, 0)])
        .collect();
    cluster.deltas(A, 1, 1, &deltas);
    assert_eq!(cluster.outputs(), []);
    cluster.dead(A, 1);
    let due = dues(&cluster.outputs());
    assert_eq!(due.len(), clients.len());
    let of = |node| due.iter().filter(|(to, ..)| *to == node).count();
    assert_eq!(of(A), 0);
    assert!(of(B) > 0);
    assert!(of(C) > 0);
    // B has sent all of its part but one, and then dies too: C sends what is left
    let done: Vec<Delta> = due
        .iter()
        .filter(|(to, ..)| *to == B)
        .skip(1)
        // the wills are every second delta
        .map(|(_, id, _)| sent(*id, &clients[id.delta as usize / 2]))
        .collect();
    cluster.deltas(B, 1, 1, &done);
    cluster.dead(B, 1);
    let outputs = cluster.outputs();
    let again = dues(&outputs);
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].0, C);
    // should it be alive after all
    let id = again[0].1;
    assert!(outputs.contains(&(B, Output::WillVoid { id })));
}

#[test]
fn a_will_that_is_due_is_void_when_its_session_goes_on() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "c", false, 3600);
    cluster.deltas(A, 1, 1, &[will("c", 60)]);
    cluster.dead(A, 1);
    let due = dues(&cluster.outputs());
    let [(sender, id, 60)] = due[..] else {
        panic!("{due:?}");
    };
    cluster.start(A, 2, &["c"], &[]);
    cluster.outputs();
    let back = Claim {
        boot: Boot(2),
        ..claim(A, "c", 1, false, 3600)
    };
    assert!(matches!(
        cluster.apply(Entry::Claim(back)),
        Answer::Claim(Verdict::Granted { .. })
    ));
    assert_eq!(cluster.outputs(), [(sender, Output::WillVoid { id })]);
    assert_eq!(cluster.rows().2, 0);
}

#[test]
fn a_will_that_is_due_is_due_at_once_when_its_session_ends() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "c", false, 3600);
    cluster.deltas(A, 1, 1, &[will("c", 60)]);
    cluster.dead(A, 1);
    let due = dues(&cluster.outputs());
    let [(sender, id, 60)] = due[..] else {
        panic!("{due:?}");
    };
    cluster.claim(C, "c", true, 0);
    assert_eq!(dues(&cluster.outputs()), [(sender, id, 0)]);
    // once
    cluster.claim(C, "c", true, 0);
    assert_eq!(dues(&cluster.outputs()), []);
}

#[test]
fn wills_of_one_client_on_two_nodes_are_two() {
    let mut cluster = Cluster::new();
    cluster.deltas(A, 1, 1, &[connected("c", 1, 3), will("c", 0)]);
    cluster.deltas(B, 1, 1, &[connected("c", 1, cluster.index), will("c", 0)]);
    cluster.dead(A, 1);
    let due = dues(&cluster.outputs());
    let [(sender, id, 0)] = due[..] else {
        panic!("{due:?}");
    };
    assert_eq!(id.node, A);
    // whoever has sent that one has not dealt with the other
    let first = if sender == B { 3 } else { 1 };
    cluster.deltas(sender, 1, first, &[sent(id, "c")]);
    assert_eq!(cluster.rows().2, 1);
    let none = Delta::Will {
        client_id: "c".into(),
        will: None,
    };
    let first = if sender == B { 4 } else { 3 };
    cluster.deltas(B, 1, first, &[none]);
    assert_eq!(cluster.rows().2, 0);
}

#[test]
fn a_will_that_its_node_has_dealt_with_is_never_due() {
    let mut cluster = Cluster::new();
    cluster.deltas(A, 1, 1, &[connected("c", 1, 3), will("c", 0)]);
    let none = Delta::Will {
        client_id: "c".into(),
        will: None,
    };
    // not another node's to say
    cluster.deltas(B, 1, 1, std::slice::from_ref(&none));
    assert_eq!(cluster.rows().2, 1);
    cluster.deltas(A, 1, 3, &[none]);
    cluster.dead(A, 1);
    assert_eq!(dues(&cluster.outputs()), []);
}

#[test]
fn a_will_of_a_removed_node_is_still_sent() {
    let mut cluster = Cluster::new();
    cluster.deltas(A, 1, 1, &[connected("c", 1, 3), will("c", 0)]);
    cluster.apply(Entry::NodeRemoved { node: A });
    let due = dues(&cluster.outputs());
    let [(sender, id, 0)] = due[..] else {
        panic!("{due:?}");
    };
    cluster.dead(sender, 1);
    let again = dues(&cluster.outputs());
    assert_eq!(again.len(), 1);
    assert_ne!(again[0].0, sender);
    let (sender, _, _) = again[0];
    cluster.deltas(sender, 1, 1, &[sent(id, "c")]);
    assert_eq!(cluster.rows().2, 0);
}

#[test]
fn wills_of_the_only_node_are_due_when_it_is_back() {
    let mut machine = Machine::new(A);
    let mut index = 0;
    let mut apply = |machine: &mut Machine, entry| {
        index += 1;
        assert_eq!(machine.apply(index, entry), Answer::Done);
    };
    let rows = |boot, rows| Entry::Rows {
        node: A,
        boot: Boot(boot),
        rows,
    };
    let series = || Rows::Series {
        part: 0,
        is_last: true,
        sessions: Vec::new(),
        deltas: Vec::new(),
    };
    let name = "a".into();
    apply(&mut machine, Entry::Joined { node: A, name });
    apply(&mut machine, rows(1, series()));
    let deltas = vec![connected("c", 1, 2), will("c", 0)];
    apply(&mut machine, rows(1, Rows::Deltas { first: 1, deltas }));
    machine.poll_output();
    apply(&mut machine, rows(2, series()));
    let is_due = |output: &Output| matches!(output, Output::WillDue { .. });
    assert_eq!(
        machine
            .poll_output()
            .iter()
            .filter(|output| is_due(output))
            .count(),
        1
    );
}

#[test]
fn the_cluster_and_its_bans_are_the_same_everywhere() {
    let mut cluster = Cluster::new();
    let timeouts = Timeouts {
        dead_node: std::time::Duration::from_secs(10),
        forget_node: None,
        lease: std::time::Duration::from_secs(2),
    };
    let found = |name| Entry::Founded {
        cluster: NonZeroU64::new(name).expect("it is not 0"),
        timeouts,
    };
    let hasty = Entry::Founded {
        cluster: NonZeroU64::MIN,
        timeouts: Timeouts {
            lease: std::time::Duration::from_secs(4),
            ..timeouts
        },
    };
    assert_eq!(cluster.apply(hasty), Answer::Refused(Refusal::Timeouts));
    assert_eq!(cluster.apply(found(7)), Answer::Done);
    assert_eq!(cluster.apply(found(8)), Answer::Refused(Refusal::Founded));
    assert_eq!(cluster.machines[2].cluster(), NonZeroU64::new(7));
    let ban = |is_banned| Entry::Ban {
        client_id: "c".into(),
        is_banned,
    };
    for (is_banned, outputs) in [(true, 3), (true, 0), (false, 3), (false, 0)] {
        cluster.apply(ban(is_banned));
        assert_eq!(cluster.outputs().len(), outputs);
        assert_eq!(cluster.machines[1].is_banned("c"), is_banned);
    }
}

#[test]
fn a_snapshot_brings_back_all_tables_and_says_what_they_hold() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "kept", false, 3600);
    cluster.deltas(
        A,
        1,
        1,
        &[
            route("a", PLAIN),
            will("kept", 60),
            connected("clean", 1, 4),
        ],
    );
    cluster.deltas(B, 1, 1, &[route("b", PERSISTENT)]);
    cluster.apply(Entry::Ban {
        client_id: "x".into(),
        is_banned: true,
    });
    let bytes = cluster.machines[0].snapshot();
    let mut restored = Machine::restore(B, &bytes, None).expect("a snapshot");
    assert_eq!(restored.applied(), cluster.index);
    assert_eq!(
        restored.route_numbers(),
        cluster.machines[1].route_numbers()
    );
    assert_eq!(
        restored.client_numbers(),
        cluster.machines[1].client_numbers()
    );
    assert_eq!(restored.will_numbers(), cluster.machines[1].will_numbers());
    let ban = Output::Ban {
        client_id: "x".into(),
        is_banned: true,
    };
    // not what it wants itself
    assert_eq!(
        restored.poll_output(),
        [told(A, "a", PLAIN), ban, Output::Members]
    );
    // and they go on alike
    cluster.index += 1;
    let entry = Entry::NodeDead {
        node: A,
        boot: Boot(1),
    };
    restored.apply(cluster.index, entry.clone());
    cluster.machines[1].apply(cluster.index, entry);
    assert_eq!(restored.will_numbers(), cluster.machines[1].will_numbers());
    assert_eq!(
        restored.route_numbers(),
        cluster.machines[1].route_numbers()
    );
    assert_eq!(
        Machine::restore(A, &bytes[..9], None).err(),
        Some(InvalidSnapshot::Malformed)
    );
    assert_eq!(
        Machine::restore(A, &[9], None).err(),
        Some(InvalidSnapshot::Version(9))
    );
}

#[test]
fn a_node_that_catches_up_by_a_snapshot_hears_what_became_of_its_own() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "held", false, 3600);
    cluster.deltas(
        A,
        1,
        1,
        &[connected("here", 7, 3), connected("stays", 8, 3)],
    );
    cluster.deltas(
        B,
        1,
        1,
        &[
            connected("b", 1, 3),
            will("b", 0),
            connected("c", 1, 3),
            will("c", 0),
        ],
    );
    cluster.dead(B, 1);
    let due: Vec<_> = dues(&cluster.outputs())
        .into_iter()
        .filter(|(to, ..)| *to == A)
        .map(|(_, id, _)| id)
        .collect();
    let before = cluster.machines[0].clone();
    cluster.claim(C, "held", true, 0);
    let epoch = cluster.index;
    cluster.claim(C, "here", true, 0);
    cluster.dead(A, 1);
    let bytes = cluster.machines[2].snapshot();
    let mut after = Machine::restore(A, &bytes, Some(&before)).expect("a snapshot");
    let outputs = after.poll_output();
    let client_id = "held".into();
    let mut expected = vec![
        taken("held", 1),
        taken("here", 7),
        taken("stays", 8),
        Output::Ended { client_id, epoch },
        Output::Died { boot: Boot(1) },
    ];
    expected.extend(due.into_iter().map(|id| Output::WillVoid { id }));
    for output in &expected {
        assert!(outputs.contains(output), "{output:?} is not in {outputs:?}");
    }
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % end
    }
}

fn random_delta(random: &mut Random, since: u64) -> Delta {
    let client = format!("c{}", random.below(6));
    let connection = random.below(4);
    match random.below(7) {
        0 => route(
            &format!("t/{}", random.below(5)),
            [None, PLAIN, PERSISTENT][random.below(3) as usize],
        ),
        1 => connected(&client, connection, since.saturating_sub(random.below(9))),
        2 => disconnected(&client, connection),
        3 => ended(&client, since.saturating_sub(random.below(9))),
        4 => will(&client, random.below(2) as u32),
        5 => Delta::Will {
            client_id: client.into(),
            will: None,
        },
        _ => sent(
            WillId {
                node: node(1 + random.below(3)),
                boot: Boot(1 + random.below(3)),
                index: since.saturating_sub(random.below(9)),
                delta: 0,
            },
            &client,
        ),
    }
}

#[test]
fn a_machine_that_was_restored_somewhere_goes_on_like_the_others() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut cluster = Cluster::new();
        let mut boots = [1u64; 3];
        let mut next = [1u64; 3];
        let mut restored: Option<Machine> = None;
        for _ in 0..60 {
            let at = random.below(3) as usize;
            let (of, boot) = (node(at as u64 + 1), Boot(boots[at]));
            let since = cluster.index;
            let entry = match random.below(10) {
                0 => Entry::NodeDead { node: of, boot },
                1 => {
                    boots[at] += 1;
                    next[at] = 1;
                    Entry::Rows {
                        node: of,
                        boot: Boot(boots[at]),
                        rows: Rows::Series {
                            part: 0,
                            is_last: random.below(4) > 0,
                            sessions: vec![(format!("c{}", random.below(6)).into(), None, 60)],
                            deltas: vec![random_delta(&mut random, since)],
                        },
                    }
                }
                2 | 3 => Entry::Claim(Claim {
                    boot,
                    ..claim(
                        of,
                        &format!("c{}", random.below(6)),
                        since,
                        random.below(2) == 0,
                        random.below(2) as u32 * 60,
                    )
                }),
                _ => {
                    let first = next[at];
                    next[at] += 1;
                    let deltas = vec![random_delta(&mut random, since)];
                    Entry::Rows {
                        node: of,
                        boot,
                        rows: Rows::Deltas { first, deltas },
                    }
                }
            };
            cluster.apply(entry.clone());
            if let Some(machine) = &mut restored {
                machine.apply(cluster.index, entry);
                let like = &mut cluster.machines[1];
                assert_eq!(machine.poll_output(), like.poll_output(), "seed {seed}");
                assert_eq!(
                    machine.snapshot().len(),
                    like.snapshot().len(),
                    "seed {seed}"
                );
                assert_eq!(
                    machine.client_numbers(),
                    like.client_numbers(),
                    "seed {seed}"
                );
                assert_eq!(machine.route_numbers(), like.route_numbers(), "seed {seed}");
                assert_eq!(machine.will_numbers(), like.will_numbers(), "seed {seed}");
            } else if random.below(20) == 0 {
                let bytes = cluster.machines[0].snapshot();
                let mut machine = Machine::restore(B, &bytes, None).expect("a snapshot");
                machine.poll_output();
                cluster.machines[1].poll_output();
                restored = Some(machine);
            }
        }
    }
}

#[test]
fn a_session_that_goes_on_for_one_connection_is_kept_up_to_its_end() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "c", false, 60);
    cluster.claim(A, "c", false, 0);
    // its node keeps what it has
    assert_eq!(cluster.outputs(), []);
    let held = cluster.machines[0].client("c").map(ClientRow::holder);
    assert_eq!(held, Some(Some(A)));
    // one that begins anew is not
    cluster.claim(A, "c", true, 0);
    let held = cluster.machines[0].client("c").map(ClientRow::holder);
    assert_eq!(held, Some(None));
}

#[test]
fn what_ended_a_session_once_does_not_end_the_next_one() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "c", false, 60);
    let Verdict::Granted { epoch } = cluster.claim(B, "c", true, 60) else {
        panic!("a clean start never waits");
    };
    assert_eq!(cluster.machines[0].ended_of(A), [("c".into(), epoch)]);
    // A has not said yet that it is gone
    cluster.claim(A, "c", true, 60);
    assert_eq!(cluster.machines[0].ended_of(A), []);
    assert_eq!(cluster.machines[0].ended_of(B).len(), 1);
}

#[test]
fn a_claim_that_nobody_waits_for_is_not_granted_later() {
    let mut cluster = Cluster::new();
    let given_up = claim(A, "c", 1, true, 60);
    let unclaimed = |number| Entry::Unclaimed {
        node: A,
        boot: Boot(1),
        number,
    };
    assert_eq!(cluster.apply(unclaimed(1)), Answer::Claim(Verdict::Void));
    assert_eq!(
        cluster.apply(Entry::Claim(given_up)),
        Answer::Claim(Verdict::Void)
    );
    assert_eq!(cluster.machines[0].client("c"), None);
    // one that was judged before stays as it was
    let granted = cluster.apply(Entry::Claim(claim(A, "c", 2, true, 60)));
    assert_eq!(cluster.apply(unclaimed(2)), granted);
}

#[test]
fn a_session_that_came_back_is_stated_whatever_ended_it_before() {
    let mut cluster = Cluster::new();
    cluster.claim(A, "c", false, 60);
    cluster.claim(B, "c", true, 60);
    cluster.claim(A, "c", true, 60);
    // A has not said that the first one is gone, and starts anew
    cluster.start(A, 2, &["c"], &[]);
    let held = cluster.machines[0].client("c").map(ClientRow::holder);
    assert_eq!(held, Some(Some(A)));
    assert_eq!(cluster.machines[0].ended_of(A), []);
}
