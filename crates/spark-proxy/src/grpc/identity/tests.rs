//! Compared with independent decoders: prost, and a parser that cuts tags and lengths to 32 bits as
//! protobuf-java does.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

const ID: &str = "01234567-89ab-cdef-0123-456789abcdef";
const OTHER: &str = "01234567-89AB-cdef-0123-456789abcdef";

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, tag = "1")]
    session_id: String,
    #[prost(message, optional, tag = "2")]
    user_context: Option<UserContext>,
    #[prost(bytes, tag = "3")]
    plan: Vec<u8>,
    #[prost(string, optional, tag = "4")]
    client_type: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UserContext {
    #[prost(string, tag = "1")]
    user_id: String,
    #[prost(string, tag = "2")]
    user_name: String,
    #[prost(bytes, repeated, tag = "999")]
    extensions: Vec<Vec<u8>>,
}

fn identity(keep_extensions: bool) -> Identity {
    Identity::new("s-berth", "sa|me", keep_extensions)
}

fn grpc(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out
}

fn field(number: u64, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    wire::put_field(&mut out, number, content);
    out
}

fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

/// The forwarded bytes when the input is split at these places.
fn rewritten(bytes: &[u8], cuts: &[usize], keep: bool) -> Result<Vec<u8>, InvalidRequest> {
    let mut rewriter = Rewriter::new(identity(keep));
    let mut out = VecDeque::new();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    for pair in cuts.windows(2) {
        rewriter.feed(Bytes::copy_from_slice(&bytes[pair[0]..pair[1]]), &mut out)?;
    }
    rewriter.finish()?;
    Ok(out
        .iter()
        .flat_map(|piece| [&piece.berth_bytes[..], &piece.client_bytes[..]].concat())
        .collect())
}

fn one(message: &[u8]) -> Result<Request, InvalidRequest> {
    let out = rewritten(&grpc(message), &[], true)?;
    assert_eq!(&out[..5], &grpc(&out[5..])[..5], "the length prefix is right");
    Ok(Request::decode(&out[5..]).unwrap())
}

fn refused(message: &[u8]) -> &'static str {
    for step in [1, 3, usize::MAX] {
        let bytes = grpc(message);
        let cuts: Vec<usize> = (0..bytes.len()).step_by(step).collect();
        assert!(rewritten(&bytes, &cuts, true).is_err(), "cut every {step}");
    }
    match rewritten(&grpc(message), &[], true) {
        Err(InvalidRequest::Malformed(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn whole() -> Request {
    Request {
        session_id: ID.to_owned(),
        user_context: Some(UserContext {
            user_id: "client".to_owned(),
            user_name: "client".to_owned(),
            extensions: vec![b"one".to_vec(), Vec::new(), b"two".to_vec()],
        }),
        plan: b"plan".to_vec(),
        client_type: Some("tester".to_owned()),
    }
}

#[test]
fn the_user_is_replaced_and_other_bytes_are_unchanged() {
    let got = one(&whole().encode_to_vec()).unwrap();
    let context = got.user_context.clone().unwrap();
    assert_eq!(
        (context.user_id.as_str(), context.user_name.as_str()),
        ("s-berth", "sa|me")
    );
    assert_eq!(
        Request {
            user_context: whole().user_context,
            ..got
        },
        whole()
    );
    assert_eq!(context.extensions, whole().user_context.unwrap().extensions);

    let shared = rewritten(&grpc(&whole().encode_to_vec()), &[], false).unwrap();
    let context = Request::decode(&shared[5..]).unwrap().user_context.unwrap();
    assert!(
        context.extensions.is_empty(),
        "dropped where the compute is shared"
    );
}

#[test]
fn a_missing_user_is_inserted_and_duplicates_are_dropped() {
    let alone = field(1, ID.as_bytes());
    assert_eq!(one(&alone).unwrap().user_context.unwrap().user_id, "s-berth");
    let context = |extension: &[u8]| field(2, &joined(&[field(1, b"client"), field(999, extension)]));
    let doubled = joined(&[context(b"a"), alone.clone(), context(b"b"), field(3, b"plan")]);
    let got = one(&doubled).unwrap();
    assert_eq!(got.user_context.unwrap().extensions, [b"a", b"b"]);
    assert_eq!(got.plan, b"plan");
}

#[test]
fn messages_that_hide_a_second_identity_are_rejected() {
    let head = field(1, ID.as_bytes());
    let after = |rest: &[u8]| joined(&[head.clone(), field(3, b"plan"), rest.to_vec()]);
    assert_eq!(
        refused(&after(&field(2, b""))),
        "a field that must come first and once comes again"
    );
    assert_eq!(
        refused(&after(&field(1, ID.as_bytes()))),
        "a field that must come first and once comes again"
    );
    assert_eq!(
        refused(&joined(&[head.clone(), head.clone()])),
        "session_id comes twice"
    );
    assert_eq!(refused(&field(3, b"plan")), "a message has no session_id");
    assert_eq!(refused(&[]), "a message has no session_id");
    for id in [
        "",
        "1-1-1-1-1",
        "01234567-89ab-cdef-0123-456789abcdeg",
        "01234567x89ab-cdef-0123-456789abcdef",
    ] {
        assert_eq!(refused(&field(1, id.as_bytes())), "session_id is not a UUID");
    }
    // Field number 0; groups; undefined wire types.
    assert_eq!(refused(&after(&[0x02, 0x00])), "a field has the number 0");
    for tag in [0x1b, 0x1c, 0x1e, 0x1f] {
        assert_eq!(
            refused(&after(&[tag])),
            "a field has a wire type that is not in use"
        );
    }
    // Another wire type for the fields of the head.
    assert_eq!(
        refused(&[0x08, 0x01]),
        "session_id or user_context has the wrong type"
    );
    assert_eq!(
        refused(&[0x15, 0, 0, 0, 0]),
        "session_id or user_context has the wrong type"
    );
}

#[test]
fn field_numbers_that_decoders_truncate_are_rejected() {
    let after = |rest: &[u8]| joined(&[field(1, ID.as_bytes()), field(3, b"plan"), rest.to_vec()]);
    // 2^32 + (1 << 3 | 2): a 32-bit decoder reads field 1.
    let mut tag = Vec::new();
    wire::put_varint(&mut tag, (1 << 32) | 0x0a);
    assert_eq!(
        refused(&after(&joined(&[tag, vec![0]]))),
        "a field number is too large"
    );
    let mut len = vec![0x1a];
    wire::put_varint(&mut len, 1 << 32);
    assert_eq!(refused(&after(&len)), "a length is too large");
    let mut len = vec![0x1a];
    wire::put_varint(&mut len, 1 << 31);
    assert_eq!(refused(&after(&len)), "a length is too large");
    assert_eq!(
        refused(&after(&[
            0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02
        ])),
        "a varint is too long"
    );
    // An overlong tag of ten bytes for a field of the head is still that field.
    let long = [0x92, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00, 0x00];
    assert_eq!(
        refused(&after(&long)),
        "a field that must come first and once comes again"
    );
}

#[test]
fn lengths_beyond_the_message_are_rejected() {
    let head = field(1, ID.as_bytes());
    let past = joined(&[head.clone(), vec![0x1a, 5, 1, 2]]);
    assert_eq!(refused(&past), "a field goes past the end of its message");
    assert_eq!(
        refused(&joined(&[head.clone(), vec![0x1d, 1, 2, 3]])),
        "a field goes past the end of its message"
    );
    assert_eq!(
        refused(&joined(&[head.clone(), vec![0x18]])),
        "the message ends in the middle of a field"
    );
    assert_eq!(
        refused(&[0x0a, 36, b'0']),
        "a field goes past the end of its message"
    );
    // An incomplete context.
    assert!(!refused(&joined(&[field(2, &[0x0a, 5]), head.clone()])).is_empty());
    // A truncated message, or none.
    let bytes = grpc(&joined(&[head.clone(), field(3, b"plan")]));
    for end in 0..bytes.len() {
        assert!(rewritten(&bytes[..end], &[], true).is_err(), "{end}");
    }
    // A head beyond the limit.
    let long = joined(&[field(2, &field(999, &vec![0; MAX_HEAD_BYTES])), head]);
    assert_eq!(refused(&long[..]), "session_id and user_context are too long");
}

#[test]
fn flags_and_later_messages_are_checked() {
    let message = field(1, ID.as_bytes());
    let mut compressed = grpc(&message);
    compressed[0] = 1;
    assert_eq!(rewritten(&compressed, &[], true), Err(InvalidRequest::Compressed));
    compressed[0] = 2;
    assert!(matches!(
        rewritten(&compressed, &[], true),
        Err(InvalidRequest::Malformed(_))
    ));
    let later = |id: &str| joined(&[grpc(&message), grpc(&field(1, id.as_bytes()))]);
    assert!(rewritten(&later(ID), &[], true).is_ok());
    // The same UUID in another spelling, which engines treat as another session.
    assert_eq!(
        rewritten(&later(OTHER), &[], true),
        Err(InvalidRequest::Malformed("session_id changes within a call"))
    );
    assert_eq!(
        rewritten(&joined(&[grpc(&message), compressed]), &[], true),
        Err(InvalidRequest::Malformed("a message has unknown flags"))
    );
}

/// The `client_type` that is collected when the input is split every `step` bytes.
fn client_type_of(message: &[u8], step: usize, known: KnownClients) -> Option<Vec<u8>> {
    let mut rewriter = Rewriter::new(identity(true))
        .with_operation()
        .with_client_type(4, known);
    for part in grpc(message).chunks(step) {
        let part = Bytes::copy_from_slice(part);
        rewriter.feed(part, &mut VecDeque::new()).unwrap();
    }
    rewriter.finish().unwrap();
    rewriter.client_type().map(|found| found.as_bytes().to_vec())
}

#[test]
fn the_end_of_the_client_type_is_collected_for_unknown_clients() {
    let none = KnownClients::default();
    let id = field(1, ID.as_bytes());
    let long: Vec<u8> = (0..=255).cycle().take(1000).collect();
    for step in [1, 3, 50, 127, 128, 129, usize::MAX] {
        let of = |parts: &[Vec<u8>]| client_type_of(&joined(parts), step, none);
        assert_eq!(of(&[id.clone(), field(3, b"plan")]), None);
        let plain = [
            id.clone(),
            field(3, &long),
            field(4, b"spark/4.3.0"),
            field(6, b"op"),
        ];
        assert_eq!(of(&plain).unwrap(), b"spark/4.3.0");
        let twice = [id.clone(), field(4, b"first, longer"), field(4, b"last")];
        assert_eq!(of(&twice).unwrap(), b"last");
        assert_eq!(of(&[id.clone(), field(4, &long)]).unwrap(), long[1000 - 128..]);
    }
}

#[test]
fn known_clients_are_not_collected_again() {
    let mut known = KnownClients::default();
    let message = joined(&[field(1, ID.as_bytes()), field(4, b"spark/4.3.0")]);
    known.insert(&OTHER.parse().unwrap());
    assert!(
        client_type_of(&message, usize::MAX, known).is_some(),
        "another id"
    );
    known.insert(&ID.parse().unwrap());
    assert_eq!(client_type_of(&message, usize::MAX, known), None);
    // Bounded: the oldest is forgotten.
    for number in 0..4 {
        let id: SparkSessionId = format!("{number:08x}-89ab-cdef-0123-456789abcdef")
            .parse()
            .unwrap();
        known.insert(&id);
        known.insert(&id);
        assert!(known.contains(&id));
    }
    assert!(!known.contains(&ID.parse().unwrap()));
}

#[test]
fn bulk_bytes_are_neither_copied_nor_buffered() {
    let mut rewriter = Rewriter::new(identity(true));
    let mut out = VecDeque::new();
    let content = vec![7; 1 << 20];
    let message = Bytes::from(grpc(&joined(&[field(1, ID.as_bytes()), field(3, &content)])));
    let (first, rest) = (message.slice(..1000), message.slice(1000..));
    rewriter.feed(first.clone(), &mut out).unwrap();
    rewriter.feed(rest.clone(), &mut out).unwrap();
    assert_eq!(out.len(), 2);
    assert!(
        first.as_ptr_range().contains(&out[0].client_bytes.as_ptr()),
        "a slice of what came"
    );
    assert_eq!(out[1].client_bytes.as_ptr(), rest.as_ptr());
    assert!(out[1].berth_bytes.is_empty());
}

/// Top-level fields as a 32-bit decoder reads them: number and content.
fn fields_32(mut bytes: &[u8]) -> Option<Vec<(u32, Vec<u8>)>> {
    fn varint(bytes: &mut &[u8]) -> Option<u64> {
        let mut value = 0_u64;
        for shift in 0..10 {
            let (&byte, rest) = bytes.split_first()?;
            *bytes = rest;
            value |= u64::from(byte & 0x7f).checked_shl(7 * shift).unwrap_or(0);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)? as u32;
        let len = match tag & 7 {
            0 => {
                varint(&mut bytes)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)? as i32).ok()?,
            5 => 4,
            _ => return None,
        };
        let content = bytes.get(..len)?;
        bytes = &bytes[len..];
        fields.push((tag >> 3, content.to_vec()));
    }
    Some(fields)
}

/// Bytes that are mostly similar to a message.
fn almost_a_message() -> impl Strategy<Value = Vec<u8>> {
    let small = vec(any::<u8>(), 0..40);
    let part = prop_oneof![
        4 => Just(field(1, ID.as_bytes())),
        1 => Just(field(1, OTHER.as_bytes())),
        2 => small.clone().prop_map(|content| field(2, &field(999, &content))),
        1 => small.clone().prop_map(|content| field(2, &content)),
        4 => (3_u64..40, small.clone()).prop_map(|(number, content)| field(number, &content)),
        2 => (3_u64..40, any::<u64>()).prop_map(|(number, value)| {
            let mut out = Vec::new();
            wire::put_varint(&mut out, number << 3);
            wire::put_varint(&mut out, value);
            out
        }),
        1 => (3_u64..40).prop_map(|number| {
            let mut out = Vec::new();
            wire::put_varint(&mut out, number << 3 | 5);
            out.extend_from_slice(&[1, 2, 3, 4]);
            out
        }),
        1 => any::<u64>().prop_map(|value| {
            let mut out = Vec::new();
            wire::put_varint(&mut out, value);
            out
        }),
        1 => small,
    ];
    (
        vec(part, 0..8),
        proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
    )
        .prop_map(|(parts, change)| {
            let mut message = joined(&parts);
            if let (Some((index, byte)), false) = (change, message.is_empty()) {
                let index = index.index(message.len());
                message[index] = byte;
            }
            message
        })
}

fn good_message() -> impl Strategy<Value = Vec<u8>> {
    let tail = vec((3_u64..1000, vec(any::<u8>(), 0..300)), 0..6);
    (vec(vec(any::<u8>(), 0..30), 0..3), any::<bool>(), tail).prop_map(|(extensions, first, tail)| {
        let context: Vec<Vec<u8>> = extensions.iter().map(|content| field(999, content)).collect();
        let context = field(2, &joined(&[field(1, b"client"), joined(&context)]));
        let id = field(1, ID.as_bytes());
        let head = if first {
            [id, context].concat()
        } else {
            [context, id].concat()
        };
        let tail: Vec<Vec<u8>> = tail
            .iter()
            .map(|(number, content)| field(*number, content))
            .collect();
        [head, joined(&tail)].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Every decoder reads one session and one user in a forwarded message, the user is Berth's,
    /// and every other byte is unchanged.
    #[test]
    fn accepted_messages_carry_only_the_user_of_berth(message in almost_a_message(), cuts in vec(any::<usize>(), 0..8)) {
        let Ok(out) = rewritten(&grpc(&message), &cuts, true) else { return Ok(()) };
        let before = fields_32(&message).unwrap();
        let after = fields_32(&out[5..]).unwrap();
        let users: Vec<_> = after.iter().filter(|(number, _)| *number == 2).collect();
        let sessions: Vec<_> = after.iter().filter(|(number, _)| *number == 1).collect();
        prop_assert_eq!((users.len(), sessions.len()), (1, 1));
        prop_assert_eq!(users[0], &after[0], "Berth's identity comes first");
        let named: Vec<_> = before.iter().filter(|(number, _)| *number == 1).collect();
        prop_assert_eq!(&sessions, &named);
        let context = UserContext::decode(&users[0].1[..]).unwrap();
        prop_assert_eq!((context.user_id.as_str(), context.user_name.as_str()), ("s-berth", "sa|me"));
        let others = |fields: &[(u32, Vec<u8>)]| -> Vec<(u32, Vec<u8>)> {
            fields.iter().filter(|(number, _)| *number > 2).cloned().collect()
        };
        prop_assert_eq!(others(&before), others(&after));
        if let Ok(decoded) = Request::decode(&out[5..]) {
            prop_assert_eq!(decoded.user_context.unwrap().user_id, "s-berth");
        }
    }

    /// The result does not depend on how the bytes are split.
    #[test]
    fn chunk_boundaries_do_not_change_the_result(
        messages in vec(prop_oneof![almost_a_message(), good_message()], 1..4),
        cuts in vec(any::<usize>(), 0..20),
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(|message| grpc(message)).collect();
        let every: Vec<usize> = (0..bytes.len()).collect();
        let whole = rewritten(&bytes, &[], true);
        prop_assert_eq!(&rewritten(&bytes, &cuts, true), &whole);
        prop_assert_eq!(&rewritten(&bytes, &every, true), &whole);
    }

    /// Valid messages are forwarded with only the user changed.
    #[test]
    fn valid_messages_pass(messages in vec(good_message(), 1..4), cuts in vec(any::<usize>(), 0..8)) {
        let bytes: Vec<u8> = messages.iter().flat_map(|message| grpc(message)).collect();
        let mut out = &rewritten(&bytes, &cuts, false).unwrap()[..];
        for message in &messages {
            let len = u32::from_be_bytes(out[1..5].try_into().unwrap()) as usize;
            let (before, after) = (fields_32(message).unwrap(), fields_32(&out[5..5 + len]).unwrap());
            prop_assert_eq!(
                before.into_iter().filter(|(number, _)| *number > 2).collect::<Vec<_>>(),
                after.into_iter().filter(|(number, _)| *number > 2).collect::<Vec<_>>()
            );
            out = &out[5 + len..];
        }
        prop_assert!(out.is_empty());
    }
}
