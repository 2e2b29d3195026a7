//! Text that somebody else wrote and that is shown: nothing in it may be invisible or command a terminal.

/// Whether a character has no shape of its own, or changes how others are shown: Unicode's control (Cc), format (Cf), and
/// line separating characters. They let one name look like another.
pub(crate) fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{890}'..='\u{891}'
                | '\u{8e2}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{110bd}'
                | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0001}'
                | '\u{e0020}'..='\u{e007f}'
        )
}

/// Names of keys, projects and models are no longer.
const NAME_CHARS_MAX: usize = 128;

/// Whether a text can name a key, a project or a model.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= NAME_CHARS_MAX && !text.chars().any(is_invisible)
}

/// A text as messages show it: what is invisible is escaped.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match is_invisible(character) {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_invisible_is_escaped_and_nothing_else() {
        assert_eq!(shown("Zoë O'Brien-李 🙂"), "Zoë O'Brien-李 🙂");
        assert_eq!(shown("a\u{1b}[31m\u{202e}b\u{200b}\n"), "a\\u{1b}[31m\\u{202e}b\\u{200b}\\n");
    }
}
