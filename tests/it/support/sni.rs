//! A second reader of server names, written without a look at the first: the oracle of what arrives where.

/// The first server name of a ClientHello in any records, as it stands there; `None` when there is none.
pub(crate) fn server_name(bytes: &[u8]) -> Option<Vec<u8>> {
    let message = joined(bytes)?;
    let mut hello = Reader(&message);
    (hello.take(1)? == [1]).then_some(())?;
    let len = hello.number(3)?;
    let mut body = Reader(hello.take(len)?);
    body.take(34)?;
    body.vector(1)?;
    body.vector(2)?;
    body.vector(1)?;
    let mut extensions = Reader(body.vector(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let content = extensions.vector(2)?;
        if kind == 0 {
            let mut names = Reader(Reader(content).vector(2)?);
            return (names.number(1)? == 0).then(|| names.vector(2).map(<[u8]>::to_vec))?;
        }
    }
    None
}

/// As routes compare it: lower-case, without a trailing dot.
pub(crate) fn normal_name(bytes: &[u8]) -> Option<String> {
    let name = String::from_utf8(server_name(bytes)?).ok()?.to_ascii_lowercase();
    Some(name.strip_suffix('.').map_or(name.clone(), str::to_owned))
}

/// The handshake bytes of the records at the front, as many as make one message.
fn joined(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut records = Reader(bytes);
    let mut message = Vec::new();
    loop {
        if let [_, a, b, c, ..] = message[..]
            && message.len() >= 4 + usize::from(a) * 65536 + usize::from(b) * 256 + usize::from(c)
        {
            return Some(message);
        }
        (records.take(1)? == [22]).then_some(())?;
        records.take(2)?;
        message.extend_from_slice(records.vector(2)?);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self, width: usize) -> Option<usize> {
        Some(self.take(width)?.iter().fold(0, |number, byte| number * 256 + usize::from(*byte)))
    }

    /// The bytes behind a length of `width` bytes.
    fn vector(&mut self, width: usize) -> Option<&'a [u8]> {
        let len = self.number(width)?;
        self.take(len)
    }
}
