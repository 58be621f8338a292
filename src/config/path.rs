//! Paths of requests, in the one form in which they are compared.

/// The form of an absolute path in which paths are compared: unreserved characters are not percent-encoded, all that cannot
/// stand in a path is, in capitals; no empty segments, and none of dots (RFC 3986, section 6.2.2). `None`: a `%` without two
/// digits behind it.
pub fn normal(path: &str) -> Option<String> {
    let text = encoded(path)?;
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let folder = matches!(text.rsplit('/').next(), Some("" | "." | "..")) && !segments.is_empty();
    Some(format!("/{}{}", segments.join("/"), if folder { "/" } else { "" }))
}

/// Each character as it stands in a path, encoded or not.
fn encoded(path: &str) -> Option<String> {
    let mut text = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let (byte, decoded) = match byte {
            b'%' => (digit(bytes.next()?)? << 4 | digit(bytes.next()?)?, true),
            byte => (byte, false),
        };
        let plain = is_unreserved(byte) || (!decoded && b"!$&'()*+,;=:@/".contains(&byte));
        if plain {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    Some(text)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_form() {
        for (path, form) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//a///b//", "/a/b/"),
            ("/a/./b/../c", "/a/c"),
            ("/a/b/..", "/a/"),
            ("/../..", "/"),
            ("/%61%7E/%2f%2F", "/a~/%2F%2F"),
            ("/%2e%2E/a", "/a"),
            ("/a b/ä\"", "/a%20b/%C3%A4%22"),
            ("/a/*/**.js", "/a/*/**.js"),
            ("/..*", "/..*"),
        ] {
            assert_eq!(normal(path).as_deref(), Some(form), "{path}");
            assert_eq!(normal(form).as_deref(), Some(form), "{form} stays as it is");
        }
        assert_eq!(normal("/a%2"), None);
        assert_eq!(normal("/a%xy"), None);
    }
}
