//! Text that was decoded with the wrong character set.

/// What a text shows of UTF-8 that was read as Windows-1252 (`Ã©` for `é`), or of bytes that were lost on
/// the way (U+FFFD; `锟斤拷`, which is U+FFFD read as GBK), with what it may have been; `None` if nothing.
pub fn mojibake(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    if text.contains('\u{fffd}') {
        return Some("U+FFFD, where bytes were no character".into());
    }
    if text.contains("锟斤拷") {
        return Some("`锟斤拷`, lost characters read as GBK".into());
    }
    let characters: Vec<char> = text.chars().collect();
    (0..characters.len()).find_map(|at| {
        let (was, is) = misread(&characters[at..])?;
        Some(format!("`{is}`, perhaps `{was}`"))
    })
}

/// The character that the first few would be as bytes of Windows-1252, and the few.
fn misread(text: &[char]) -> Option<(char, String)> {
    let first = byte(*text.first()?)?;
    let length = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let bytes: Option<Vec<u8>> = text.get(..length)?.iter().map(|&c| byte(c)).collect();
    let bytes = bytes?;
    let was = std::str::from_utf8(&bytes).ok()?.chars().next()?;
    // Two characters may stand side by side by chance; the second of a pair is then no letter's half.
    let is_plausible = length > 2 || was.is_alphabetic() || "\u{a0}£°§©®«»¿¡·".contains(was);
    is_plausible.then(|| (was, text[..length].iter().collect()))
}

/// The byte of a character in Windows-1252.
fn byte(c: char) -> Option<u8> {
    const UPPER: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
        '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    match c as u32 {
        code @ 0x80..=0xff => u8::try_from(code).ok(),
        _ => Some(0x80 + UPPER.iter().position(|&upper| upper == c)? as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Pairs made with Python: text.encode("utf-8").decode("cp1252").
    #[test]
    fn text_read_as_windows_1252_is_found() {
        for (wrong, was) in
            [("cafÃ©", 'é'), ("itâ€™s", '’'), ("ä½\u{a0}å¥½", '你'), ("a ðŸ˜€", '😀'), ("10Â°", '°')]
        {
            assert!(mojibake(wrong).is_some_and(|found| found.contains(was)), "{wrong}");
        }
    }

    #[test]
    fn lost_characters_are_found() {
        assert!(mojibake("a\u{fffd}b").is_some());
        assert!(mojibake("锟斤拷").is_some());
    }

    #[test]
    fn good_text_is_left_alone() {
        for good in
            ["café", "it’s", "你好", "naïve – “quoted” … €5", "Ärger für Ölçü", "São Tomé: NÃO", "Â", "☕ é"]
        {
            assert_eq!(mojibake(good), None, "{good}");
        }
    }
}
