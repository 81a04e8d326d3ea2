use proptest::prelude::*;

use super::*;

fn any_attributes() -> impl Strategy<Value = FileAttributes> {
    let pair = || prop::option::of(any::<(u32, u32)>());
    (
        prop::option::of(any::<u64>()),
        pair(),
        prop::option::of(any::<u32>()),
        pair(),
    )
        .prop_map(|(size, owner, permissions, times)| FileAttributes {
            size,
            owner,
            permissions,
            times,
        })
}

fn string(packet: &mut BytesMut, bytes: &[u8]) {
    packet.put_u32(length(bytes.len()));
    packet.put_slice(bytes);
}

/// The attributes as a request carries them, which is as a reply does.
fn encoded(attributes: &FileAttributes) -> Bytes {
    let mut packet = Request::new(0).attributes(attributes).head;
    packet.advance(HEADER);
    packet.freeze()
}

/// Each reply as a server sends it, without its length.
fn packet(id: u32, reply: &Reply) -> Bytes {
    let mut packet = BytesMut::new();
    let kind = match reply {
        Reply::Status(_) => kind::STATUS_REPLY,
        Reply::Handle(_) => kind::HANDLE_REPLY,
        Reply::Data(_) => kind::DATA_REPLY,
        Reply::Names(_) => kind::NAME_REPLY,
        Reply::Attributes(_) => kind::ATTRIBUTES_REPLY,
        Reply::Extended(_) => kind::EXTENDED_REPLY,
    };
    packet.put_u8(kind);
    packet.put_u32(id);
    match reply {
        Reply::Status(status) => {
            let codes = 0..=8;
            let code = codes.into_iter().find(|&code| StatusCode::from(code) == status.code);
            packet.put_u32(code.unwrap_or(99));
            string(&mut packet, status.message.as_bytes());
            string(&mut packet, b"en");
        }
        Reply::Handle(bytes) | Reply::Data(bytes) => string(&mut packet, bytes),
        Reply::Names(names) => {
            packet.put_u32(length(names.len()));
            for name in names {
                string(&mut packet, &name.name);
                string(&mut packet, b"-rw-r--r-- as ls prints it");
                packet.put_slice(&encoded(&name.attributes));
            }
        }
        Reply::Attributes(attributes) => packet.put_slice(&encoded(attributes)),
        Reply::Extended(bytes) => packet.put_slice(bytes),
    }
    packet.freeze()
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    let code = prop::sample::select(vec![0, 1, 2, 3, 4, 5, 8]).prop_map(StatusCode::from);
    prop_oneof![
        (code, ".{0,40}").prop_map(|(code, message)| Reply::Status(Status { code, message })),
        bytes().prop_map(Reply::Handle),
        bytes().prop_map(Reply::Data),
        bytes().prop_map(Reply::Extended),
        any_attributes().prop_map(Reply::Attributes),
        prop::collection::vec(
            (bytes(), any_attributes()).prop_map(|(name, attributes)| Name { name, attributes }),
            0..9
        )
        .prop_map(Reply::Names),
    ]
}

proptest! {
    #[test]
    fn every_reply_is_read_as_it_was_sent(id in any::<u32>(), reply in any_reply()) {
        prop_assert_eq!(Reply::parse(packet(id, &reply)), Ok((id, reply)));
    }

    #[test]
    fn a_reply_that_is_cut_short_is_malformed_or_another_reply(reply in any_reply(), keep in any::<prop::sample::Index>()) {
        let whole = packet(1, &reply);
        let cut = whole.slice(..keep.index(whole.len()));
        // A status needs no message, and the content of an extended reply is another parser's.
        if let Ok((id, parsed)) = Reply::parse(cut) {
            prop_assert_eq!(id, 1);
            prop_assert!(matches!(parsed, Reply::Status(_) | Reply::Extended(_)));
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Greeting::parse(bytes.clone().into());
        let _ = Reply::parse(bytes.into());
    }

    #[test]
    fn packets_are_the_same_however_the_bytes_come(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 1..8),
        piece in 1_usize..20,
    ) {
        let mut bytes = Vec::new();
        for packet in &packets {
            bytes.extend(length(packet.len()).to_be_bytes());
            bytes.extend(packet);
        }
        let mut received = Packets::default();
        let mut seen = Vec::new();
        for piece in bytes.chunks(piece) {
            received.push(piece);
            while let Some(packet) = received.next().unwrap() {
                seen.push(packet.to_vec());
            }
        }
        prop_assert_eq!(seen, packets);
    }
}

#[test]
fn a_lying_count_or_length_takes_no_memory() {
    let mut names = BytesMut::new();
    names.put_u8(kind::NAME_REPLY);
    names.put_u32(1);
    names.put_u32(u32::MAX);
    assert_eq!(Reply::parse(names.freeze()), Err(TRUNCATED));
    for length in [0, 256 * 1024 + 1, u32::MAX] {
        let mut packets = Packets::default();
        packets.push(&length.to_be_bytes());
        assert!(packets.next().is_err(), "{length}");
    }
}

#[test]
fn a_write_is_numbered_and_carries_its_data_uncopied() {
    let data = Bytes::from_static(b"content");
    let (head, tail) = Request::write(b"h", 7, data.clone()).numbered(0x0102_0304);
    assert_eq!(
        head,
        [
            &[0, 0, 0, 29, kind::WRITE, 1, 2, 3, 4, 0, 0, 0, 1, b'h'][..],
            &[0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 7]
        ]
        .concat()
    );
    assert_eq!(tail.as_ptr(), data.as_ptr());
}

#[test]
fn a_greeting_lists_extensions_with_their_versions() {
    let mut packet = BytesMut::new();
    packet.put_u8(kind::VERSION_REPLY);
    packet.put_u32(3);
    string(&mut packet, b"fsync@openssh.com");
    string(&mut packet, b"1");
    let greeting = Greeting::parse(packet.freeze()).unwrap();
    assert!(greeting.offers("fsync@openssh.com", "1"));
    assert!(!greeting.offers("fsync@openssh.com", "2") && !greeting.offers("fsync", "1"));
}
