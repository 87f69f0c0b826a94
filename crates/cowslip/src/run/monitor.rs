//! [`Monitor`]: QEMU itself (QMP), which stops a guest for a moment.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::mem;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::failure::Failure;

/// One that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(20);
const LINE_BYTES_MAX: u64 = 1 << 20;

/// See the module.
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
    /// Of a line whose end has not come yet.
    begun: Vec<u8>,
    is_greeted: bool,
    /// Of the last command: an answer that came too late is not the next one's.
    number: u64,
}

impl Monitor {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
            begun: Vec::new(),
            is_greeted: false,
            number: 0,
        }
    }

    /// Something without arguments. What it says of other things meanwhile is left out.
    pub(crate) fn tell(&mut self, command: &str) -> Result<(), Failure> {
        if !self.is_greeted {
            // Once: late or not, it is answered.
            self.is_greeted = true;
            self.converse("qmp_capabilities")?;
        }
        self.converse(command)
    }

    fn converse(&mut self, command: &str) -> Result<(), Failure> {
        let failed = |why: String| Failure::failed(format!("telling QEMU {command:?}: {why}"));
        self.number += 1;
        let number = json!(self.number);
        let line = json!({ "execute": command, "id": number }).to_string() + "\n";
        let stream = self.stream.get_mut();
        stream
            .set_read_timeout(Some(SILENCE))
            .and_then(|()| stream.write_all(line.as_bytes()))
            .map_err(|e| failed(e.to_string()))?;
        loop {
            let line = self.line().map_err(|e| failed(e.to_string()))?;
            let said: Value = serde_json::from_slice(&line).map_err(|e| failed(e.to_string()))?;
            if said.get("id") != Some(&number) {
                continue;
            }
            if let Some(error) = said.get("error") {
                return Err(failed(error["desc"].to_string()));
            }
            if said.get("return").is_some() {
                return Ok(());
            }
        }
    }

    /// The next one. What came of it before a silence is kept.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let room = LINE_BYTES_MAX.saturating_sub(self.begun.len() as u64);
        let mut part = (&mut self.stream).take(room);
        part.read_until(b'\n', &mut self.begun)?;
        if self.begun.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(mem::take(&mut self.begun))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_is_not_the_answer_is_left_out_and_errors_are_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(move || {
            let mut heard = Vec::new();
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            let answers = [
                "{\"QMP\": {}}\n{\"return\": {}, \"id\": 1}\n",
                "{\"event\": \"STOP\"}\n{\"return\": {}, \"id\": 2}\n",
                "{\"error\": {\"desc\": \"too late\"}, \"id\": 2}\n{\"error\": {\"desc\": \"no such thing\"}, \"id\": 3}\n",
            ];
            for answer in answers {
                heard.push(lines.next().unwrap().unwrap());
                (&theirs).write_all(answer.as_bytes()).unwrap();
            }
            heard
        });
        let mut monitor = Monitor::new(ours);
        monitor.tell("stop").unwrap();
        let why = monitor.tell("jump").unwrap_err().message;
        assert_eq!(why, "telling QEMU \"jump\": \"no such thing\"");
        let gone = monitor.tell("cont").unwrap_err().message;
        assert!(gone.contains("cont"), "{gone}");
        let heard = qemu.join().unwrap().join("\n");
        assert_eq!(
            heard,
            "{\"execute\":\"qmp_capabilities\",\"id\":1}\n{\"execute\":\"stop\",\"id\":2}\n{\"execute\":\"jump\",\"id\":3}"
        );
    }
}
