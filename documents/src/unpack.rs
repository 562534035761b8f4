//! Compressed streams that can't be bombs: what comes out is held against what went in.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use crate::Limits;
use crate::identify::Packing;

/// Memory that an xz file may ask for, bytes.
const XZ_MEMORY: u64 = 256 << 20;
/// The largest window of a zstd file, as a power of two.
const ZSTD_WINDOW: u32 = 27;

/// A reader that counts its bytes.
struct Counted<R>(R, Rc<Cell<u64>>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(into)?;
        self.1.set(self.1.get() + n as u64);
        Ok(n)
    }
}

/// A decoder with its books.
struct Unpacked<R> {
    decoder: R,
    taken: Rc<Cell<u64>>,
    given: u64,
    limits: Limits,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.decoder.read(into)?;
        self.given += n as u64;
        check_ratio(self.given, self.taken.get(), &self.limits)?;
        Ok(n)
    }
}

/// # Errors
/// If so much may not come out of so little.
pub fn check_ratio(given: u64, taken: u64, limits: &Limits) -> io::Result<()> {
    let ratio = limits.unpack_ratio;
    if given > taken.saturating_mul(ratio).saturating_add(limits.unpack_bytes) {
        let reason = format!("it unpacks to more than {ratio} times its size, as bombs do");
        return Err(io::Error::other(reason));
    }
    Ok(())
}

/// What a packed stream holds.
///
/// # Errors
/// What the decoder finds wrong with its beginning.
pub fn unpack<'a>(
    packing: Packing,
    input: Box<dyn Read + 'a>,
    limits: &Limits,
) -> io::Result<Box<dyn Read + 'a>> {
    let taken = Rc::new(Cell::new(0));
    let input = Counted(input, taken.clone());
    let decoder: Box<dyn Read + 'a> = match packing {
        Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(input)),
        Packing::Zstd => {
            let mut decoder = zstd::Decoder::new(input)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        Packing::Xz => {
            let flags = liblzma::stream::CONCATENATED;
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, flags)?;
            Box::new(liblzma::read::XzDecoder::new_stream(input, stream))
        }
    };
    Ok(Box::new(Unpacked { decoder, taken, given: 0, limits: limits.clone() }))
}
