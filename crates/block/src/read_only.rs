//! [`ReadOnly`]: any device, with writes refused.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::device::{Device, DeviceError, Extent, Geometry, ReadSink};
use crate::units::ByteRange;

/// A device that only reads.
pub struct ReadOnly(pub Arc<dyn Device>);

impl Device for ReadOnly {
    fn geometry(&self) -> Geometry {
        Geometry {
            read_only: true,
            ..self.0.geometry()
        }
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        self.0.read(range, sink)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.0.flush()
    }

    fn block_status(
        &self,
        range: ByteRange,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), DeviceError> {
        self.0.block_status(range, visit)
    }
}
