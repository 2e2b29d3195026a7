use proptest::prelude::*;

use super::*;

fn matcher(stops: &[&str]) -> StopMatcher {
    StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()).collect()).expect("no stop is empty")
}

/// Everything shown, and whether it stopped.
fn run(stops: &[String], pieces: &[&str]) -> (String, bool) {
    let mut matcher = StopMatcher::new(stops.to_vec()).expect("no stop is empty");
    let mut shown = String::new();
    let mut stopped = false;
    for piece in pieces {
        let step = matcher.push(piece);
        shown.push_str(&step.text);
        stopped |= step.stopped;
    }
    shown.push_str(&matcher.finish());
    (shown, stopped)
}

/// The same by searching the whole text: the first end of a match, and there the earliest start.
fn naive(stops: &[String], text: &str) -> (String, bool) {
    for end in 1..=text.len() {
        let start =
            stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes())).map(|s| end - s.len());
        if let Some(start) = start.min() {
            return (text[..start].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

#[test]
fn a_stop_that_spans_pieces_is_never_half_shown() {
    let mut stops = matcher(&["\nUser:"]);
    assert_eq!(stops.push("Hello"), StopStep { text: "Hello".to_owned(), stopped: false });
    assert_eq!(stops.push("!\n"), StopStep { text: "!".to_owned(), stopped: false });
    assert_eq!(stops.push("Us"), StopStep { text: String::new(), stopped: false });
    assert_eq!(stops.push("er: hi"), StopStep { text: String::new(), stopped: true });
    assert_eq!(stops.push("more"), StopStep { text: String::new(), stopped: true });
    assert_eq!(stops.finish(), "");
}

#[test]
fn what_was_held_back_is_shown_when_it_was_no_stop() {
    let mut stops = matcher(&["aab"]);
    assert_eq!(stops.push("aa").text, "");
    assert_eq!(stops.push("a").text, "a", "the last two may still begin a stop");
    assert_eq!(stops.push("c").text, "aac");
    assert_eq!(stops.push("aa").text, "");
    assert_eq!(stops.finish(), "aa");
}

#[test]
fn the_match_complete_first_wins() {
    assert_eq!(matcher(&["abcd", "bc"]).push("xabcd"), StopStep { text: "xa".to_owned(), stopped: true });
    assert_eq!(matcher(&["c", "abc"]).push("xabc"), StopStep { text: "x".to_owned(), stopped: true });
}

#[test]
fn an_empty_stop_is_refused() {
    let error = StopMatcher::new(vec!["a".to_owned(), String::new()]).expect_err("it would stop everything");
    assert_eq!(error.to_string(), "stop is empty, but must be at least one character");
}

proptest! {
    #[test]
    fn it_agrees_with_a_search_of_the_whole_text(
        text in "[aé🦀]{0,24}",
        stops in prop::collection::vec("[aé]{1,4}", 0..4),
        cuts in prop::collection::vec(0usize..24, 0..8),
    ) {
        let characters: Vec<String> = text.chars().map(String::from).collect();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(characters.len())).collect();
        cuts.extend([0, characters.len()]);
        cuts.sort_unstable();
        let pieces: Vec<String> = cuts.windows(2).map(|pair| characters[pair[0]..pair[1]].concat()).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        prop_assert_eq!(run(&stops, &pieces), naive(&stops, &text));
    }

    #[test]
    fn nothing_is_shown_that_a_later_piece_could_turn_into_a_stop(
        text in "[ab]{0,16}",
        stops in prop::collection::vec("[ab]{1,4}", 1..4),
    ) {
        let mut matcher = StopMatcher::new(stops.clone()).expect("no stop is empty");
        let mut shown = String::new();
        for (index, _) in text.char_indices() {
            let step = matcher.push(&text[index..=index]);
            shown.push_str(&step.text);
            let rest = &text[shown.len()..=index];
            // What is held back is as short as can be: it begins some stop string.
            prop_assert!(step.stopped || rest.is_empty() || stops.iter().any(|stop| stop.starts_with(rest)));
            if step.stopped {
                break;
            }
        }
    }
}
