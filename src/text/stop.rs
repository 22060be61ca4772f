//! Stop strings over a stream of text: nothing of a stop string is ever emitted, whatever the token borders.

/// Looks for the first stop string in text that arrives in pieces. The result does not depend on the pieces.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// A stop string was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopHit {
    /// Which of the stops.
    pub index: usize,
}

impl StopMatcher {
    /// Empty stops never match.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.stops.is_empty()
    }

    /// Appends to `out` the text that no stop string can claim any more. On a hit (the stop that is complete first; of several, the
    /// one that began first) the text is cut where the stop begins, and nothing may be pushed after it.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<StopHit> {
        self.held.push_str(text);
        let hit = self.stops.iter().enumerate().filter(|(_, s)| !s.is_empty()).filter_map(|(index, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        });
        if let Some((_, start, index)) = hit.min() {
            out.push_str(&self.held[..start]);
            self.held.clear();
            return Some(StopHit { index });
        }
        let keep_from =
            self.held.char_indices().map(|(i, _)| i).find(|&i| self.may_begin(i)).unwrap_or(self.held.len());
        out.extend(self.held.drain(..keep_from));
        None
    }

    /// Appends the text that was held back: no stop string came of it.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    fn may_begin(&self, at: usize) -> bool {
        self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[String], pieces: &[&str]) -> (String, bool) {
        let mut m = StopMatcher::new(stops.to_vec());
        let mut out = String::new();
        for piece in pieces {
            if m.push(piece, &mut out).is_some() {
                return (out, true);
            }
        }
        m.finish(&mut out);
        (out, false)
    }

    /// The shortest prefix of `text` that ends in a stop, cut where that stop begins.
    fn oracle(stops: &[String], text: &str) -> (String, bool) {
        for (end, _) in text.char_indices().chain([(text.len(), ' ')]) {
            let starts =
                stops.iter().filter(|s| !s.is_empty() && text[..end].ends_with(s.as_str())).map(|s| end - s.len());
            if let Some(start) = starts.min() {
                return (text[..start].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn across_borders() {
        let stops = ["\n\nUser:".to_owned()];
        assert_eq!(run(&stops, &["Hi\n", "\nUs", "er: x"]), ("Hi".to_owned(), true));
        assert_eq!(run(&stops, &["Hi\n", "\nUs", "ed"]), ("Hi\n\nUsed".to_owned(), false));
        assert_eq!(run(&[], &["a", "b"]), ("ab".to_owned(), false));
    }

    proptest! {
        #[test]
        fn equals_the_oracle_at_any_split(
            stops in proptest::collection::vec("[abé]{0,4}", 0..4),
            text in "[abcé]{0,16}",
            cuts in proptest::collection::vec(0usize..17, 0..6),
        ) {
            let mut at: Vec<usize> = cuts.into_iter().filter(|&c| c <= text.len() && text.is_char_boundary(c)).collect();
            at.extend([0, text.len()]);
            at.sort_unstable();
            let pieces: Vec<&str> = at.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            prop_assert_eq!(run(&stops, &pieces), oracle(&stops, &text));
        }
    }
}
