//! The message of the proof, and whether what came back is it.
//!
//! Trust: what came back is compared byte for byte; nothing in it is believed.
//! Never: take a changed message for the one that was sent.

/// Header fields that servers add in front (RFC 5321 §4.4, RFC 8601).
const TRACE: &[&str] =
    &["return-path", "received", "delivered-to", "x-original-to", "authentication-results"];

/// A message with what is often spoilt on the way: dots at the start of lines, blanks at their end, long lines, text
/// that is not ASCII, an empty line at the end.
pub(crate) fn compose(user: &str, hostname: &str) -> Vec<u8> {
    let now = jiff::Timestamp::now();
    let long = "0123456789abcdef".repeat(60);
    let lines = [
        format!("Message-ID: <proof.{}.{}@{hostname}>", now.as_second(), std::process::id()),
        format!("Date: {}", now.strftime("%a, %d %b %Y %H:%M:%S +0000")),
        format!("From: <{user}>"),
        format!("To: <{user}>"),
        "Subject: Postern proves".to_owned(),
        " itself".to_owned(),
        "MIME-Version: 1.0".to_owned(),
        "Content-Type: text/plain; charset=utf-8".to_owned(),
        "Content-Transfer-Encoding: 8bit".to_owned(),
        String::new(),
        "The next lines begin with dots, end in blanks, are long, are not ASCII.".to_owned(),
        ".".to_owned(),
        "..two dots".to_owned(),
        "blanks   ".to_owned(),
        "From here it looks like an mbox".to_owned(),
        long,
        "Grüße, 挨拶, привет".to_owned(),
        String::new(),
    ];
    let mut text = lines.join("\r\n");
    text.push_str("\r\n");
    text.into_bytes()
}

/// Whether `received` is `sent` below nothing but trace headers.
pub(crate) fn compare(sent: &[u8], received: &[u8]) -> anyhow::Result<()> {
    let Some(trace) = received.strip_suffix(sent) else {
        let same = sent.iter().rev().zip(received.iter().rev()).take_while(|(a, b)| a == b).count();
        anyhow::bail!(
            "the message came back changed: of {} bytes the last {same} are right, {} came back",
            sent.len(),
            received.len()
        );
    };
    let mut traces = 0;
    for line in trace.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let line = String::from_utf8_lossy(line);
        if line.starts_with([' ', '\t']) {
            continue;
        }
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if !TRACE.contains(&name.as_str()) {
            anyhow::bail!("the message came back with a line {:?} in front", line.trim_end());
        }
        traces += usize::from(name == "received");
    }
    if traces == 0 {
        anyhow::bail!("the message came back without a Received: line");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{compare, compose};

    #[test]
    fn only_trace_headers_may_be_added() {
        let sent = compose("a@b.example", "b.example");
        let with = |front: &str| [front.as_bytes(), &sent].concat();
        let trace = "Return-Path: <a@b.example>\r\nReceived: from x\r\n\tby y; date\r\n";
        assert!(compare(&sent, &with(trace)).is_ok());
        assert!(compare(&sent, &sent).is_err(), "no Received");
        assert!(compare(&sent, &with("Received: x\r\nSubject: y\r\n")).is_err());
        assert!(compare(&sent, &sent[1..]).is_err());
        let mut changed = with(trace);
        let last = changed.len() - 4;
        changed[last] ^= 1;
        assert!(compare(&sent, &changed).is_err());
        assert!(compare(&sent, b"").is_err());
    }
}
