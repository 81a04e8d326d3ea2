use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..20)
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,12}"
}

fn program() -> impl Strategy<Value = Program> {
    prop_oneof![
        Just(Program::Shell),
        bytes().prop_map(Program::Line),
        vec(bytes(), 0..4).prop_map(Program::Arguments),
    ]
}

fn terminal() -> impl Strategy<Value = Terminal> {
    (text(), any::<u32>(), any::<u32>()).prop_map(|(term, cols, rows)| Terminal { term, cols, rows })
}

fn start() -> impl Strategy<Value = Start> {
    let place = (program(), option::of(bytes()), vec((bytes(), bytes()), 0..4));
    let terms = (option::of(text()), option::of(terminal()), any::<[bool; 3]>());
    let numbers = (any::<u64>(), any::<u64>(), any::<u32>());
    (place, terms, numbers).prop_map(
        |((program, cwd, env), (tag, terminal, [input, survive, hold]), (timeout_ms, history, credit))| Start {
            program,
            cwd,
            env,
            tag,
            terminal,
            input,
            timeout_ms,
            history,
            survive,
            hold,
            credit,
        },
    )
}

fn since() -> impl Strategy<Value = Since> {
    prop_oneof![
        Just(Since::Oldest),
        Just(Since::Now),
        any::<u64>().prop_map(Since::Position)
    ]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        any::<(u32, bool)>().prop_map(|(code, timed_out)| End::Code { code, timed_out }),
        (text(), any::<[bool; 2]>()).prop_map(|(name, [core_dumped, timed_out])| End::Signal {
            name,
            core_dumped,
            timed_out
        }),
    ]
}

fn info() -> impl Strategy<Value = Info> {
    (start(), any::<(u32, u64, u64, u32)>(), option::of(end()), text()).prop_map(
        |(start, (pid, started_ms, printed, clients), end, user)| Info {
            pid,
            user,
            program: start.program,
            cwd: start.cwd.unwrap_or_default(),
            env: start.env,
            tag: start.tag,
            terminal: start.terminal,
            started_ms,
            printed,
            clients,
            end,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        any::<u32>().prop_map(|version| Request::Hello { version }),
        start().prop_map(|start| Request::Start(Box::new(start))),
        (any::<u32>(), since(), any::<bool>(), any::<u32>()).prop_map(|(pid, since, hold, credit)| {
            Request::Attach(Attach {
                pid,
                since,
                hold,
                credit,
            })
        }),
        Just(Request::List),
        bytes().prop_map(Request::Input),
        Just(Request::EndInput),
        any::<(u32, u32)>().prop_map(|(cols, rows)| Request::Resize { cols, rows }),
        text().prop_map(Request::Signal),
        any::<u32>().prop_map(Request::Credit),
        Just(Request::Seen),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        any::<u32>().prop_map(|version| Reply::Hello { version }),
        any::<(u32, u64, u64, bool, bool)>().prop_map(|(pid, position, lost, terminal, input)| Reply::Attached {
            pid,
            position,
            lost,
            terminal,
            input
        }),
        bytes().prop_map(Reply::Stdout),
        bytes().prop_map(Reply::Stderr),
        any::<u64>().prop_map(Reply::Lost),
        end().prop_map(Reply::Exited),
        info().prop_map(|info| Reply::Listed(Box::new(info))),
        Just(Reply::Done),
        (proptest::sample::select(&Failure::ALL[..]), text())
            .prop_map(|(failure, message)| Reply::Failed { failure, message }),
        any::<u32>().prop_map(Reply::Credit),
    ]
}

/// Any bytes, most of them with the kind of a message in front.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![1..11_u8, 101..111_u8, any::<u8>()];
    (kind, vec(prop_oneof![0..3_u8, any::<u8>()], 0..60)).prop_map(|(kind, mut rest)| {
        rest.insert(0, kind);
        rest
    })
}

proptest! {
    #[test]
    fn a_request_arrives_as_it_was_sent(request in request()) {
        let mut frame = Vec::new();
        request.encode(&mut frame);
        prop_assert_eq!(Request::decode(&frame[4..]), Ok(request));
    }

    #[test]
    fn a_reply_arrives_as_it_was_sent(reply in reply()) {
        let mut frame = Vec::new();
        reply.encode(&mut frame);
        prop_assert_eq!(Reply::decode(&frame[4..]), Ok(reply));
    }

    #[test]
    fn a_message_that_is_cut_short_or_goes_on_is_refused(request in request(), cut in 1_usize..8) {
        let raw = matches!(request, Request::Input(_));
        let mut frame = Vec::new();
        request.encode(&mut frame);
        let message = &frame[4..];
        prop_assert!(raw || Request::decode(&message[..message.len().saturating_sub(cut)]).is_err());
        prop_assert!(raw || Request::decode(&[message, &vec![0; cut]].concat()).is_err());
    }

    #[test]
    fn any_bytes_are_refused_or_mean_exactly_what_they_say(frame in frames()) {
        let mut again = Vec::new();
        if let Ok(request) = Request::decode(&frame) {
            request.encode(&mut again);
            prop_assert_eq!(&again[4..], &frame[..]);
        }
        again.clear();
        if let Ok(reply) = Reply::decode(&frame) {
            reply.encode(&mut again);
            prop_assert_eq!(&again[4..], &frame[..]);
        }
    }
}

#[test]
fn a_list_that_claims_more_than_there_is_takes_no_memory() {
    // A start with a program of 2^32 - 1 arguments.
    let frame = [kind::START, 2, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(Request::decode(&frame), Err(Malformed::Short(kind::START)));
}
