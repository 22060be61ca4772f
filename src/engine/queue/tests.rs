use super::*;
use crate::base::Token;
use crate::engine::OutputMode;
use crate::plan::{FinishReason, Logprob};
use std::sync::atomic::{AtomicI32, Ordering};

/// Takes `room` records, of outputs at most `max` bytes of text each.
struct Lines {
    room: usize,
    max: usize,
    lines: Vec<String>,
}

impl RecordSink for Lines {
    fn write(&mut self, record: &Record<'_>) -> Option<Taken> {
        self.room = self.room.checked_sub(1)?;
        let mut taken = Taken { tokens: 0, text: 0 };
        self.lines.push(match record {
            Record::Output(o) => {
                let cut = o.text.floor_char_boundary(self.max);
                taken = Taken { tokens: o.tokens.len(), text: cut };
                let choice = if o.info.choices > 1 { format!("/{}", o.choice) } else { String::new() };
                let finish = o.finish.filter(|_| cut == o.text.len()).map_or(String::new(), |f| format!(".{f:?}"));
                format!("{}{choice}:{:?}{}{finish}", o.info.user_data, o.tokens, &o.text[..cut])
            }
            Record::Prompt(p) => {
                taken.tokens = p.tokens.len().min(self.max);
                format!("{}<{}{:?}", p.info.user_data, p.before, &p.tokens[..taken.tokens])
            }
            Record::Done { info, done } => format!("{}.{:?}", info.user_data, done.finish),
            Record::Engine(e) => format!("{:?} {}", e.state, e.permille),
            Record::Log { message, .. } => (*message).to_owned(),
        });
        Some(taken)
    }
}

fn engine_event(state: State, permille: u32) -> EngineEvent {
    EngineEvent { state, permille, message: String::new(), error: None, t_event_ns: 1 }
}

#[derive(Debug, Default)]
struct Seen(AtomicI32);
impl Cancel for Seen {
    fn cancel(&self, id: RequestId) {
        self.0.store(id.0 as i32, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct Level(Arc<AtomicI32>);
impl Bell for Level {
    fn ring(&self) {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst), 0);
    }
    fn clear(&self) {
        assert_eq!(self.0.fetch_sub(1, Ordering::SeqCst), 1);
    }
}

const ALL: OutputMode =
    OutputMode { text: true, tokens: true, logprobs: false, prompt_logprobs: true, final_only: false };

fn open(queue: &Arc<EventQueue>, n: u64, output: OutputMode) -> OutputStream {
    let info = StreamInfo { id: RequestId(n), user_data: n, output, choices: 1, max_unread_bytes: 64, t_submit_ns: 0 };
    let nobody: Weak<dyn Cancel> = Weak::<Seen>::new();
    queue.open(info, nobody, 9).unwrap()
}

fn piece<'a>(tokens: &'a [Token], text: &'a str) -> Piece<'a> {
    Piece { tokens, text, logprobs: &[], t_first_ns: 1, t_event_ns: 1 }
}

fn done(finish: FinishReason) -> Done {
    Done { finish, error: None, prompt_tokens: 1, cached_tokens: 0, completion_tokens: 2, t_first_ns: 0, t_event_ns: 0 }
}

fn poll(queue: &EventQueue, room: usize, max: usize) -> Result<Vec<String>> {
    let mut sink = Lines { room, max, lines: Vec::new() };
    queue.poll(Some(Duration::ZERO), &mut sink).map(|()| sink.lines)
}

#[test]
fn unread_output_merges_and_streams_take_turns() {
    let q = EventQueue::new(None);
    let (a, b) = (open(&q, 1, ALL), open(&q, 2, ALL));
    a.push(0, &piece(&[1], "x")).unwrap();
    b.push(0, &piece(&[9], "b")).unwrap();
    a.push(0, &piece(&[2], "y")).unwrap();
    assert_eq!(poll(&q, 9, 99).unwrap(), ["1:[1, 2]xy", "2:[9]b"]);
    a.done(done(FinishReason::Eos));
    assert_eq!(poll(&q, 9, 99).unwrap(), ["1.Eos"]);
    assert_eq!(poll(&q, 9, 99).unwrap_err().kind, ErrorKind::Timeout);
    drop(b);
    assert_eq!(poll(&q, 9, 99).unwrap(), ["2.Error"]);
}

#[test]
fn long_text_is_split_at_code_points_and_a_full_buffer_keeps_the_rest() {
    let q = EventQueue::new(None);
    let a = open(&q, 1, OutputMode { tokens: false, ..ALL });
    a.push(0, &piece(&[1], "ab一c")).unwrap();
    a.done(done(FinishReason::Length));
    assert_eq!(poll(&q, 1, 4).unwrap(), ["1:[]ab"]);
    assert_eq!(poll(&q, 1, 4).unwrap(), ["1:[]一c"]);
    assert_eq!(poll(&q, 0, 4).unwrap_err().kind, ErrorKind::TooSmall);
    assert_eq!(poll(&q, 1, 4).unwrap(), ["1.Length"]);
}

#[test]
fn a_full_stream_is_overrun_and_its_done_has_a_place() {
    let q = EventQueue::new(None);
    let a = open(&q, 1, ALL);
    a.push(0, &piece(&[1; 15], "abcd")).unwrap();
    assert_eq!(a.push(0, &piece(&[1], "")), Err(Overrun));
    a.done(done(FinishReason::Overrun));
    assert_eq!(poll(&q, 9, 99).unwrap().last().unwrap(), "1.Overrun");
}

#[test]
fn output_for_the_end_is_held_back_up_to_half_the_limit() {
    let q = EventQueue::new(None);
    let whole = open(&q, 2, OutputMode { final_only: true, ..ALL });
    whole.push(0, &piece(&[1; 8], "")).unwrap();
    assert_eq!(poll(&q, 9, 99).unwrap_err().kind, ErrorKind::Timeout);
    whole.push(0, &piece(&[2], "")).unwrap();
    assert_eq!(poll(&q, 9, 99).unwrap(), ["2:[1, 1, 1, 1, 1, 1, 1, 1, 2]"]);
    whole.push(0, &piece(&[3], "t")).unwrap();
    assert_eq!(poll(&q, 9, 99).unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(whole.push(0, &piece(&[4; 15], "")), Err(Overrun));
    whole.done(done(FinishReason::Overrun));
    assert_eq!(poll(&q, 9, 99).unwrap(), ["2:[3]t", "2.Overrun"]);
}

#[test]
fn requests_that_ended_unread_are_bounded() {
    let q = EventQueue::new(None);
    let info = |n| StreamInfo {
        id: RequestId(n),
        user_data: n,
        output: ALL,
        choices: 1,
        max_unread_bytes: 64,
        t_submit_ns: 0,
    };
    let at_most_two = |n| q.open(info(n), Weak::<Seen>::new(), 2);
    let streams: Vec<_> = (0..4).map(|n| at_most_two(n).unwrap()).collect();
    streams.into_iter().for_each(|s| s.done(done(FinishReason::Eos)));
    let e = at_most_two(4).unwrap_err();
    assert!(e.kind == ErrorKind::Busy && e.message.contains("4 requests"), "{e}");
    assert_eq!(poll(&q, 2, 99).unwrap().len(), 2);
    assert_eq!(at_most_two(4).unwrap_err().kind, ErrorKind::Busy);
    assert_eq!(poll(&q, 1, 99).unwrap().len(), 1);
    drop(at_most_two(4).unwrap());
    assert_eq!(poll(&q, 9, 99).unwrap(), ["3.Eos", "4.Error"]);
    drop(at_most_two(5).unwrap());
}

#[test]
fn a_shut_queue_cancels_drains_and_ends() {
    let q = EventQueue::new(None);
    let engine: Arc<Seen> = Arc::default();
    let weak: Weak<Seen> = Arc::downgrade(&engine);
    let info =
        StreamInfo { id: RequestId(7), user_data: 7, output: ALL, choices: 1, max_unread_bytes: 64, t_submit_ns: 0 };
    let a = q.open(info, weak.clone(), 9).unwrap();
    q.shut();
    assert_eq!(engine.0.load(Ordering::SeqCst), 7);
    let late =
        StreamInfo { id: RequestId(8), user_data: 8, output: ALL, choices: 1, max_unread_bytes: 64, t_submit_ns: 0 };
    assert_eq!(q.open(late, weak, 9).unwrap_err().kind, ErrorKind::Shutdown);
    assert_eq!(poll(&q, 9, 99).unwrap_err().kind, ErrorKind::Timeout);
    a.done(done(FinishReason::Cancelled));
    assert!(!q.is_drained());
    assert_eq!(poll(&q, 9, 99).unwrap(), ["7.Cancelled"]);
    assert_eq!(poll(&q, 9, 99).unwrap_err().kind, ErrorKind::Shutdown);
    assert!(q.is_drained());
}

#[test]
fn the_bell_follows_the_queue() {
    let level: Arc<AtomicI32> = Arc::default();
    let q = EventQueue::new(Some(Box::new(Level(Arc::clone(&level)))));
    let now = || level.load(Ordering::SeqCst);
    q.engine_event(engine_event(State::Loading, 250));
    q.engine_event(engine_event(State::Loading, 500));
    q.engine_event(engine_event(State::Ready, 1000));
    assert_eq!(now(), 1);
    assert_eq!(poll(&q, 1, 99).unwrap(), ["Loading 500"]);
    assert_eq!(now(), 1);
    assert_eq!(poll(&q, 9, 99).unwrap(), ["Ready 1000"]);
    assert_eq!(now(), 0);
    q.wake();
    assert_eq!(now(), 1);
    assert_eq!(q.poll(None, &mut Lines { room: 1, max: 1, lines: vec![] }).unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(now(), 0);
}

#[test]
fn unread_log_lines_are_bounded() {
    let q = EventQueue::new(None);
    for i in 0..MAX_LOGS + 3 {
        q.log(3, i.to_string(), 0);
    }
    assert_eq!(poll(&q, 9999, 9).unwrap().len(), MAX_LOGS);
    q.log(3, "after".into(), 0);
    assert!(poll(&q, 9, 9).unwrap()[0].contains("3 log lines were lost"));
}

#[test]
fn a_sleeping_poller_is_woken_by_output() {
    let q = EventQueue::new(None);
    let a = open(&q, 1, ALL);
    let sleeper = std::thread::spawn({
        let q = Arc::clone(&q);
        move || {
            let mut sink = Lines { room: 9, max: 99, lines: vec![] };
            q.poll(Some(Duration::from_secs(60)), &mut sink).map(|()| sink.lines)
        }
    });
    a.push(0, &piece(&[3], "z")).unwrap();
    assert_eq!(sleeper.join().unwrap().unwrap(), ["1:[3]z"]);
}

#[test]
fn all_pollers_of_a_shut_queue_return_once_one_has_read_the_last_record() {
    let q = EventQueue::new(None);
    let a = open(&q, 1, ALL);
    q.shut();
    let sleepers: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn({
                let q = Arc::clone(&q);
                move || {
                    let mut sink = Lines { room: 9, max: 99, lines: vec![] };
                    q.poll(Some(Duration::from_secs(60)), &mut sink).map(|()| sink.lines)
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(50));
    let from = Instant::now();
    a.done(done(FinishReason::Cancelled));
    let mut ends: Vec<_> = sleepers.into_iter().map(|s| s.join().unwrap().map_err(|e| e.kind)).collect();
    assert!(from.elapsed() < Duration::from_secs(30), "a poller slept on");
    ends.sort_by_key(|end| end.is_err());
    assert_eq!(ends, [Ok(vec!["1.Cancelled".to_owned()]), Err(ErrorKind::Shutdown), Err(ErrorKind::Shutdown)]);
}

#[test]
fn choices_are_read_apart_and_say_how_they_ended() {
    let q = EventQueue::new(None);
    let info =
        StreamInfo { id: RequestId(5), user_data: 5, output: ALL, choices: 2, max_unread_bytes: 64, t_submit_ns: 0 };
    let a = q.open(info, Weak::<Seen>::new(), 9).unwrap();
    a.push(1, &piece(&[7], "x")).unwrap();
    a.push(0, &piece(&[8], "y")).unwrap();
    a.push(1, &piece(&[9], "z")).unwrap();
    assert_eq!(poll(&q, 9, 99).unwrap(), ["5/0:[8]y", "5/1:[7, 9]xz"]);
    a.push(0, &piece(&[1], "w")).unwrap();
    a.finish(0, FinishReason::Length, 2);
    assert_eq!(poll(&q, 9, 99).unwrap(), ["5/0:[1]w.Length"]);
    a.finish(1, FinishReason::Eos, 3);
    a.done(done(FinishReason::Length));
    assert_eq!(poll(&q, 9, 99).unwrap(), ["5/1:[].Eos", "5.Length"]);
}

#[test]
fn the_prompt_comes_before_its_output_and_is_not_counted() {
    let q = EventQueue::new(None);
    let a = open(&q, 1, ALL);
    let of = |tokens: &[Token]| -> Vec<Logprob> {
        tokens.iter().map(|&token| Logprob { token, rank: 1, logprob: -1.0 }).collect()
    };
    let prompt: Vec<Token> = (0..100).collect();
    a.push_prompt(&prompt[1..90], &of(&prompt[1..90]), 1);
    a.push_prompt(&prompt[90..], &of(&prompt[90..]), 2);
    a.push(0, &piece(&[1], "x")).unwrap();
    assert_eq!(poll(&q, 1, 40).unwrap(), [format!("1<1{:?}", &prompt[1..41])]);
    let rest = [format!("1<41{:?}", &prompt[41..81]), format!("1<81{:?}", &prompt[81..]), "1:[1]x".to_owned()];
    assert_eq!(poll(&q, 9, 40).unwrap(), rest);
    let whole = open(&q, 2, OutputMode { final_only: true, ..ALL });
    whole.push_prompt(&prompt[1..3], &of(&prompt[1..3]), 1);
    assert_eq!(poll(&q, 9, 99).unwrap_err().kind, ErrorKind::Timeout);
    whole.done(done(FinishReason::Stop));
    assert_eq!(poll(&q, 9, 99).unwrap(), ["2<1[1, 2]", "2.Stop"]);
}
