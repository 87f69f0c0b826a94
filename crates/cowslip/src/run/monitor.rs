//! [`Monitor`]: QEMU itself (QMP), which stops a guest for a moment, or presses its power button.

use std::io::{BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::control::read_line;
use crate::failure::Failure;

/// One that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(20);

/// See the module.
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
    is_greeted: bool,
}

impl Monitor {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
            is_greeted: false,
        }
    }

    /// Something without arguments. What it says of other things meanwhile is left out.
    pub(crate) fn tell(&mut self, command: &str) -> Result<(), Failure> {
        if !self.is_greeted {
            self.converse("qmp_capabilities")?;
            self.is_greeted = true;
        }
        self.converse(command)
    }

    fn converse(&mut self, command: &str) -> Result<(), Failure> {
        let failed = |why: String| Failure::failed(format!("telling QEMU {command:?}: {why}"));
        let line = json!({ "execute": command }).to_string() + "\n";
        let stream = self.stream.get_mut();
        stream
            .set_read_timeout(Some(SILENCE))
            .and_then(|()| stream.write_all(line.as_bytes()))
            .map_err(|e| failed(e.to_string()))?;
        loop {
            let line = read_line(&mut self.stream).map_err(|e| failed(e.to_string()))?;
            let said: Value = serde_json::from_slice(&line).map_err(|e| failed(e.to_string()))?;
            if let Some(error) = said.get("error") {
                return Err(failed(error["desc"].to_string()));
            }
            if said.get("return").is_some() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::thread;

    use super::*;

    #[test]
    fn what_is_no_answer_is_left_out_and_errors_are_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(move || {
            let mut heard = Vec::new();
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            let answers = [
                "{\"QMP\": {}}\n{\"return\": {}}\n",
                "{\"event\": \"STOP\"}\n{\"return\": {}}\n",
                "{\"error\": {\"desc\": \"no such thing\"}}\n",
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
            "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"stop\"}\n{\"execute\":\"jump\"}"
        );
    }
}
