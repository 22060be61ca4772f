use super::*;
use crate::base::ErrorKind;
use crate::hal::load::WeightFile;
use std::os::unix::fs::FileExt;

/// As long as it is, with nothing behind it.
#[derive(Debug)]
struct Space(usize);

impl Allocation for Space {
    fn addr(&self) -> u64 {
        0
    }
    fn bytes(&self) -> usize {
        self.0
    }
}

/// What happens when the piece with this byte is read.
type Bad = (usize, fn() -> Result<()>);
type Log = Arc<Mutex<Vec<(usize, Vec<u8>)>>>;

/// Keeps what it reads; fails or panics at the byte `bad`.
struct Keep {
    log: Log,
    bad: Option<Bad>,
    unfinished: Arc<AtomicUsize>,
}

impl Reader for Keep {
    fn read(&mut self, piece: &Piece) -> Result<()> {
        if let Some((at, what)) = self.bad
            && (piece.at..piece.at + piece.bytes).contains(&at)
        {
            what()?;
        }
        let mut bytes = vec![0; piece.bytes];
        piece.from.file.file.read_exact_at(&mut bytes, piece.from.offset).map_err(|e| Error::io(e.to_string()))?;
        self.log.lock().unwrap().push((piece.at, bytes));
        Ok(())
    }
    fn finish(&mut self) -> Result<()> {
        self.unfinished.fetch_sub(1, Relaxed);
        Ok(())
    }
}

fn file(bytes: &[u8]) -> FilePart {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let file = WeightFile { file: file.reopen().unwrap(), path: file.path().to_owned() };
    FilePart { file: Arc::new(file), offset: 0 }
}

fn waited(readers: &mut Readers) -> Result<()> {
    while !readers.finish(Duration::from_millis(1))? {}
    Ok(())
}

/// Reads two ranges of a file of `n` bytes with `threads` threads.
fn read(n: usize, threads: usize, bad: Option<Bad>) -> Result<()> {
    let bytes: Vec<u8> = (0..n).map(|i| (i / 7 + i / 65_536) as u8).collect();
    let (from, log, unfinished) = (file(&bytes), Log::default(), Arc::new(AtomicUsize::new(threads)));
    let made = (Arc::clone(&log), Arc::clone(&unfinished));
    let make = move || -> Result<Box<dyn Reader>> {
        Ok(Box::new(Keep { log: Arc::clone(&made.0), bad, unfinished: Arc::clone(&made.1) }))
    };
    let mut readers = Readers::start(threads, make)?;
    let to: Arc<dyn Allocation> = Arc::new(Space(n));
    // The second half before the first.
    let half = n / 2 + 1;
    readers.read(&from.skip(half), n - half, (&to, half), Placement::Device);
    readers.read(&from, half, (&to, 0), Placement::Device);
    waited(&mut readers)?;
    assert_eq!((readers.pending_bytes(), unfinished.load(Relaxed)), (0, 0));
    let mut found = std::mem::take(&mut *log.lock().unwrap());
    found.sort();
    assert!(found.iter().all(|p| (1..=PIECE_BYTES).contains(&p.1.len())));
    let found: Vec<u8> = found.into_iter().flat_map(|p| p.1).collect();
    assert!(found == bytes, "{n} bytes on {threads} threads");
    Ok(())
}

#[test]
fn every_byte_is_read_once() {
    for n in [2, 4097, 2 * PIECE_BYTES - 2, 2 * PIECE_BYTES, 5 * PIECE_BYTES + 12_345] {
        for threads in [1, 3] {
            read(n, threads, None).unwrap();
        }
    }
}

#[test]
fn errors_and_panics_come_out_and_threads_end() {
    let n = 5 * PIECE_BYTES;
    for threads in [1, 3] {
        let e = read(n, threads, Some((3 * PIECE_BYTES, || Err(Error::io("disk on fire"))))).unwrap_err();
        assert_eq!((e.kind, e.message.as_str()), (ErrorKind::Io, "disk on fire"));
        let e = read(n, threads, Some((5, || panic!("at last")))).unwrap_err();
        assert!(e.kind == ErrorKind::Internal && e.message.contains("at last"), "{e}");
    }
    let mut readers = Readers::start(2, || Err(Error::no_memory("no room"))).unwrap();
    assert_eq!(waited(&mut readers).unwrap_err().kind, ErrorKind::NoMemory);
}

/// A file that ends early, and a loader that nobody waits for.
#[test]
fn a_short_file_fails_and_a_dropped_loader_stops() {
    let (from, to): (_, Arc<dyn Allocation>) = (file(&[1; 1000]), Arc::new(Space(4000)));
    let make = || -> Result<Box<dyn Reader>> {
        Ok(Box::new(Keep { log: Log::default(), bad: None, unfinished: Arc::new(AtomicUsize::new(9)) }))
    };
    let mut readers = Readers::start(2, make).unwrap();
    readers.read(&from, 1001, (&to, 0), Placement::Device);
    assert_eq!(waited(&mut readers).unwrap_err().kind, ErrorKind::Io);
    let readers = Readers::start(2, make).unwrap();
    readers.read(&from, 4000, (&to, 0), Placement::Device);
    drop(readers);
    assert_eq!(Arc::strong_count(&to), 1, "a thread still has pieces");
}
