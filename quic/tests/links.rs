// SPDX-License-Identifier: Apache-2.0
//! Links between two endpoints on loopback: who gets one, and what arrives when they break.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corqtt_quic::{
    Accepted, Arrival, Arrivals, Endpoint, Identity, Incoming, Link, LinkError, Mark, Opening,
    Stream,
};
use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const SECRET: &str = "a secret of the tests";
const OTHER: &str = "another secret of the tests";

fn secrets(secrets: &[&str]) -> Identity {
    Identity::of_secrets(secrets).expect("they are long enough")
}

fn endpoint(identity: &Identity) -> Arc<Endpoint> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    Arc::new(Endpoint::new(socket, identity).expect("an endpoint"))
}

/// Lets the next caller in; what he said.
async fn admit(endpoint: &Endpoint) -> Result<(Bytes, Arrivals), LinkError> {
    let caller = endpoint.accept().await.expect("it is open");
    let knock = caller.knock().await?;
    let hello = Bytes::copy_from_slice(knock.hello());
    Ok((hello, knock.admit(b"acceptor").await?))
}

/// A link from `dialer` to `acceptor`, and what comes over it.
async fn link(dialer: &Endpoint, acceptor: &Endpoint) -> (Link, Arrivals) {
    let address = acceptor.address().expect("it is bound");
    let (link, admitted) = tokio::join!(dialer.dial(address, b"dialer"), admit(acceptor));
    let link = link.expect("a link");
    let (hello, arrivals) = admitted.expect("a link");
    assert_eq!(hello, &b"dialer"[..]);
    assert_eq!(link.answer(), b"acceptor");
    (link, arrivals)
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let limited = async { tokio::time::timeout(Duration::from_secs(60), test).await };
    runtime.block_on(limited).expect("it ends in time");
}

#[test]
fn both_ends_need_the_secret() {
    run(async {
        let (own, stranger) = (endpoint(&secrets(&[SECRET])), endpoint(&secrets(&[OTHER])));
        for (dialer, acceptor) in [(&own, &stranger), (&stranger, &own)] {
            let address = acceptor.address().expect("it is bound");
            let (link, admitted) = tokio::join!(dialer.dial(address, b"hello"), admit(acceptor));
            assert!(matches!(link, Err(LinkError::Connection(_))), "{link:?}");
            assert!(
                matches!(admitted, Err(LinkError::Connection(_))),
                "{admitted:?}"
            );
        }
        // who accepts us, and shows what we do not know: it is we who refuse
        let tolerant = endpoint(&secrets(&[OTHER, SECRET]));
        for (dialer, acceptor) in [(&own, &tolerant), (&tolerant, &own)] {
            let address = acceptor.address().expect("it is bound");
            let admitted = async {
                match admit(acceptor).await {
                    // the dialer has not heard the refusal yet
                    Ok((_, arrivals)) => arrivals.next().await.err(),
                    Err(error) => Some(error),
                }
            };
            let (link, admitted) = tokio::join!(dialer.dial(address, b"hello"), admitted);
            assert!(matches!(link, Err(LinkError::Connection(_))), "{link:?}");
            assert!(
                matches!(admitted, Some(LinkError::Connection(_))),
                "{admitted:?}"
            );
        }
    });
}

#[test]
fn a_secret_is_changed_node_by_node() {
    run(async {
        let old = endpoint(&secrets(&[SECRET]));
        let both = endpoint(&secrets(&[SECRET, OTHER]));
        link(&old, &both).await;
        link(&both, &old).await;
        // the new one signs now
        both.set_identity(&secrets(&[OTHER, SECRET]));
        old.set_identity(&secrets(&[SECRET, OTHER]));
        link(&both, &old).await;
        link(&old, &both).await;
        old.set_identity(&secrets(&[OTHER]));
        link(&both, &old).await;
        link(&old, &both).await;
    });
}

/// An authority, and the identity of a certificate of it.
fn certified(
    issuer: &CertifiedIssuer<'_, KeyPair>,
    authority: &CertificateDer<'static>,
) -> Identity {
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec!["nodes.test".to_owned()])
        .and_then(|params| params.signed_by(&key, issuer))
        .expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).expect("an authority");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
    let chain = vec![certificate.der().clone()];
    Identity::of_certificates(roots, chain, key, "nodes.test").expect("they fit")
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("an authority")
}

fn root(issuer: &CertifiedIssuer<'_, KeyPair>) -> CertificateDer<'static> {
    let certificate: &Certificate = issuer.as_ref();
    certificate.der().clone()
}

#[test]
fn certificates_of_the_same_authority_serve_in_place_of_a_secret() {
    run(async {
        let (ours, theirs) = (authority(), authority());
        let (our_root, their_root) = (root(&ours), root(&theirs));
        let first = endpoint(&certified(&ours, &our_root));
        let second = endpoint(&certified(&ours, &our_root));
        link(&first, &second).await;
        // it trusts us, we do not trust it
        let stranger = endpoint(&certified(&theirs, &our_root));
        let address = first.address().expect("it is bound");
        let (link, admitted) = tokio::join!(stranger.dial(address, b"hello"), admit(&first));
        assert!(link.is_err());
        assert!(admitted.is_err());
        // we would be trusted, and do not trust
        let address = endpoint(&certified(&theirs, &their_root));
        let at = address.address().expect("it is bound");
        let (link, _) = tokio::join!(first.dial(at, b"hello"), admit(&address));
        assert!(link.is_err());
    });
}

#[test]
fn who_is_refused_hears_why() {
    run(async {
        let (dialer, acceptor) = (endpoint(&secrets(&[SECRET])), endpoint(&secrets(&[SECRET])));
        let refusing = async {
            let caller = acceptor.accept().await.expect("it is open");
            caller
                .knock()
                .await
                .expect("it knows the secret")
                .refuse("of another cluster");
        };
        let address = acceptor.address().expect("it is bound");
        let (link, ()) = tokio::join!(dialer.dial(address, b"hello"), refusing);
        let error = link.expect_err("it is refused").to_string();
        assert_eq!(error, "refused: of another cluster");
    });
}

#[test]
fn nobody_at_the_address_is_an_error_within_seconds() {
    run(async {
        let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = silent.local_addr().expect("it is bound");
        let link = endpoint(&secrets(&[SECRET])).dial(address, b"hello").await;
        assert!(matches!(link, Err(LinkError::Connection(_))), "{link:?}");
    });
}

#[test]
fn a_request_is_answered() {
    run(async {
        let (dialer, acceptor) = (endpoint(&secrets(&[SECRET])), endpoint(&secrets(&[SECRET])));
        let (link, arrivals) = link(&dialer, &acceptor).await;
        let body = vec![7; 3 << 20];
        let answering = async {
            let begun = arrivals.next().await.expect("a request");
            let Ok(Arrival::Request(request)) = begun.read().await else {
                panic!("not a request");
            };
            let length = request.body().len().to_string();
            request
                .answer(length.as_bytes())
                .await
                .expect("the link is there");
        };
        let (answer, ()) = tokio::join!(link.request(&body), answering);
        assert_eq!(
            answer.expect("an answer"),
            body.len().to_string().as_bytes()
        );
    });
}

async fn stream(arrivals: &Arrivals) -> Opening {
    let begun = arrivals.next().await.expect("a stream");
    match begun.read().await {
        Ok(Arrival::Stream(opening)) => opening,
        other => panic!("{other:?}"),
    }
}

/// The far end of a stream.
#[derive(Default)]
struct Receiver {
    incoming: Incoming,
    bytes: Vec<u8>,
    repeats: u32,
}

impl Receiver {
    /// Takes so many frames, or all until `end` entries are there; keeps all but the last three entries.
    async fn take(&mut self, arrivals: &Arrivals, frames: usize, end: u64) {
        let opening = stream(arrivals).await;
        assert_eq!(opening.header(), b"stream 1");
        let accepted = opening
            .accept(&mut self.incoming)
            .await
            .expect("the link is there");
        let Accepted {
            missing,
            frames: mut reader,
            writer,
            marks,
        } = accepted;
        assert_eq!(missing, 0);
        let writing = tokio::spawn(writer.run());
        for _ in 0..frames {
            let frame = reader.next().await.expect("a frame");
            let known = self.incoming.handle_frame(&frame).expect("in order");
            self.repeats += known;
            if known == 0 {
                self.bytes.extend_from_slice(&frame.body);
            }
            let received = self.incoming.received();
            let kept = received.saturating_sub(3);
            self.incoming.finish(received, kept, &[]);
            marks.mark(received, kept, &[]);
            if received == end {
                break;
            }
        }
        writing.abort();
    }
}

#[test]
fn every_entry_arrives_once_and_in_order_however_often_the_link_breaks() {
    run(async {
        let (dialer, acceptor) = (endpoint(&secrets(&[SECRET])), endpoint(&secrets(&[SECRET])));
        let stream = Arc::new(Stream::new(64 << 20));
        let mut receiver = Receiver::default();
        let mut expected = Vec::new();
        for round in 0..20u8 {
            for n in 0..50u8 {
                // small ones and large ones
                let body = vec![round ^ n; if n % 16 == 0 { 70_000 } else { usize::from(n) }];
                expected.extend_from_slice(&body);
                stream.push(1, 0, body.into()).expect("there is room");
            }
            let (link, arrivals) = link(&dialer, &acceptor).await;
            let carrying = {
                let (stream, link) = (stream.clone(), link.clone());
                tokio::spawn(async move { link.carry(&stream, b"stream 1", |_| ()).await })
            };
            let frames = if round == 19 { usize::MAX } else { 40 };
            receiver.take(&arrivals, frames, 1000).await;
            arrivals.close("broken");
            carrying.await.expect("it returns");
        }
        assert_eq!(receiver.incoming.received(), 1000);
        assert_eq!(receiver.repeats, 0);
        assert_eq!(receiver.bytes, expected);
    });
}

/// Carries a stream until the other part of a test is done.
async fn beside<T>(
    link: &Link,
    stream: &Stream,
    on_mark: impl FnMut(&Mark),
    test: impl Future<Output = T>,
) -> T {
    tokio::select! {
        error = link.carry(stream, b"stream 1", on_mark) => panic!("{error}"),
        done = test => done,
    }
}

#[test]
fn marks_and_verdicts_come_back_and_make_room() {
    run(async {
        let (dialer, acceptor) = (endpoint(&secrets(&[SECRET])), endpoint(&secrets(&[SECRET])));
        let (link, arrivals) = link(&dialer, &acceptor).await;
        let outgoing = Stream::new(80);
        assert_eq!(outgoing.push(3, 9, Bytes::from_static(&[1; 40])), Ok(1));
        assert!(outgoing.push(1, 9, Bytes::new()).is_err());
        let (seen, mut marks) = tokio::sync::mpsc::unbounded_channel::<Mark>();
        let on_mark = |mark: &Mark| {
            let _ = seen.send(mark.clone());
        };
        let receiving = async {
            let mut incoming = Incoming::default();
            let accepted = stream(&arrivals).await.accept(&mut incoming).await;
            let mut accepted = accepted.expect("the link is there");
            let frame = accepted.frames.next().await.expect("a frame");
            assert_eq!((frame.first, frame.count, frame.applied), (1, 3, 9));
            accepted.marks.mark(2, 1, &[(2, 0x97)]);
            accepted.marks.mark(3, 3, &[(3, 0x80)]);
            let seen = async {
                let mut verdicts = Vec::new();
                loop {
                    let mark = marks.recv().await.expect("a mark");
                    verdicts.extend(mark.verdicts);
                    if mark.kept == 3 {
                        break verdicts;
                    }
                }
            };
            tokio::select! {
                error = accepted.writer.run() => panic!("{error}"),
                verdicts = seen => assert_eq!(verdicts, [(2, 0x97), (3, 0x80)]),
            }
        };
        beside(&link, &outgoing, on_mark, receiving).await;
        assert_eq!(outgoing.outgoing().bytes(), 0);
        assert_eq!(outgoing.push(1, 9, Bytes::new()), Ok(4));
    });
}

#[test]
fn a_verdict_whose_mark_was_lost_with_its_link_comes_with_the_next_one() {
    run(async {
        let (dialer, acceptor) = (endpoint(&secrets(&[SECRET])), endpoint(&secrets(&[SECRET])));
        let outgoing = Stream::new(1 << 20);
        outgoing.push(2, 0, Bytes::new()).expect("there is room");
        let mut incoming = Incoming::default();
        {
            let (link, arrivals) = link(&dialer, &acceptor).await;
            let receiving = async {
                let accepted = stream(&arrivals).await.accept(&mut incoming).await;
                let frame = accepted.expect("the link is there").frames.next().await;
                incoming
                    .handle_frame(&frame.expect("a frame"))
                    .expect("in order");
                // nobody writes it
                incoming.finish(2, 2, &[(2, 0x97)]);
            };
            beside(&link, &outgoing, |_| (), receiving).await;
            link.close("broken");
        }
        let (link, arrivals) = link(&dialer, &acceptor).await;
        let (seen, mut marks) = tokio::sync::mpsc::unbounded_channel::<Mark>();
        let on_mark = |mark: &Mark| {
            let _ = seen.send(mark.clone());
        };
        let receiving = async {
            let accepted = stream(&arrivals).await.accept(&mut incoming).await;
            let writer = accepted.expect("the link is there").writer;
            tokio::select! {
                error = writer.run() => panic!("{error}"),
                mark = marks.recv() => mark.expect("a mark"),
            }
        };
        let mark = beside(&link, &outgoing, on_mark, receiving).await;
        assert_eq!(mark, incoming.mark());
        assert_eq!(mark.verdicts, [(2, 0x97)]);
    });
}

#[test]
fn an_idle_stream_tells_the_applied_index() {
    run(async {
        let (dialer, acceptor) = (endpoint(&secrets(&[SECRET])), endpoint(&secrets(&[SECRET])));
        let (link, arrivals) = link(&dialer, &acceptor).await;
        let outgoing = Stream::new(1);
        let receiving = async {
            let mut incoming = Incoming::default();
            let accepted = stream(&arrivals).await.accept(&mut incoming).await;
            let mut accepted = accepted.expect("the link is there");
            for applied in [7, 9] {
                outgoing.tell_applied(applied);
                let frame = accepted.frames.next().await.expect("a frame");
                assert_eq!((frame.count, frame.applied), (0, applied));
                assert_eq!(incoming.handle_frame(&frame), Ok(0));
            }
        };
        beside(&link, &outgoing, |_| (), receiving).await;
    });
}

#[test]
fn a_request_that_is_given_up_is_not_taken_for_a_whole_one() {
    run(async {
        let (dialer, acceptor) = (endpoint(&secrets(&[SECRET])), endpoint(&secrets(&[SECRET])));
        let (link, arrivals) = link(&dialer, &acceptor).await;
        // more than the windows hold: it cannot have been sent as a whole
        let body = vec![7; 24 << 20];
        let begun = async {
            let begun = arrivals.next().await.expect("a request");
            tokio::task::yield_now().await;
            begun
        };
        let begun = tokio::select! {
            answer = link.request(&body) => panic!("{answer:?}"),
            begun = begun => begun,
        };
        assert!(matches!(begun.read().await, Err(LinkError::Ended)));
        // nor is an answer that never comes an empty one
        let unanswered = async {
            let begun = arrivals.next().await.expect("a request");
            drop(begun.read().await.expect("it is whole"));
        };
        let (answer, ()) = tokio::join!(link.request(b"?"), unanswered);
        assert!(matches!(answer, Err(LinkError::Ended)), "{answer:?}");
    });
}
