//! The CPU in the place of a card: the same sources by the system's C++ compiler (`kernels/emulated.h`
//! says how threads run). Each source becomes a shared library when one of its kernels is first asked
//! for, and is kept by the hash of its text.
//!
//! Every allocation ends at a page that can't be touched, so a kernel that goes out of bounds ends the
//! program with a message; new memory is NaN.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, ptr};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::gpu::{MemoryInfo, Shape};
use crate::kernels::{self, DEVICE, Kernel, SOURCES};
use crate::matmul::Product;
use crate::{Element, Error};

const PAGE: usize = 4096;
/// What is said to be the device's memory.
const MEMORY: usize = 16 << 30;
/// The alignment that kernels count on.
const ALIGNMENT: usize = 16;

/// One launch at a time: blocks share the libraries' static memory.
static LIBRARIES: Mutex<Libraries> = Mutex::new(Libraries { loaded: Vec::new(), launches: 0 });

struct Libraries {
    loaded: Vec<(usize, libloading::Library)>,
    launches: u64,
}

/// Work that can be done at once, or recorded.
#[derive(Debug)]
pub enum Work {
    Launch { kernel: &'static Kernel, shape: Shape, args: Vec<u64> },
    Product(Product),
    Copy { to: u64, from: u64, bytes: usize },
    Zero { to: u64, bytes: usize },
}

type Entry = unsafe extern "C" fn(*mut *mut c_void);
type Launch = unsafe extern "C" fn(
    Entry,
    *const c_char,
    *const u32,
    u32,
    usize,
    *mut *mut c_void,
    i32,
) -> *const c_char;

/// The device.
pub struct Emulator {
    /// Bytes of each allocation.
    allocations: Mutex<HashMap<u64, usize>>,
}

impl Emulator {
    pub fn new() -> Emulator {
        Emulator { allocations: Mutex::default() }
    }

    /// Pages of an allocation without the guards at both ends.
    fn pages(bytes: usize) -> usize {
        bytes.div_ceil(PAGE) * PAGE
    }

    pub fn memory(&self) -> MemoryInfo {
        let allocations = self.allocations.lock().unwrap_or_else(|e| e.into_inner());
        MemoryInfo { free: MEMORY - allocations.values().sum::<usize>(), total: MEMORY }
    }

    pub fn allocate(&self, bytes: usize, what: &str) -> Result<u64, Error> {
        let MemoryInfo { free, total } = self.memory();
        let (name, what) = ("emulator".into(), what.into());
        let out = || Error::OutOfMemory { name, what, bytes, free, total };
        if bytes > free {
            return Err(out());
        }
        let pages = Emulator::pages(bytes);
        // SAFETY: new memory, of which the inner pages are opened.
        let mapped = unsafe {
            let (closed, open) = (ProtFlags::empty(), MprotectFlags::READ | MprotectFlags::WRITE);
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            mmap_anonymous(ptr::null_mut(), pages + 2 * PAGE, closed, flags).and_then(|start| {
                let inner = start.byte_add(PAGE);
                mprotect(inner, pages, open)?;
                inner.cast::<u8>().write_bytes(0xff, pages);
                Ok(inner.byte_add(pages - bytes.next_multiple_of(ALIGNMENT)))
            })
        };
        let address = mapped.map_err(|_| out())? as u64;
        let mut allocations = self.allocations.lock().unwrap_or_else(|e| e.into_inner());
        allocations.insert(address, bytes);
        Ok(address)
    }

    /// # Panics
    /// If something was written beside the buffer.
    pub fn release(&self, address: u64, bytes: usize) {
        let mut allocations = self.allocations.lock().unwrap_or_else(|e| e.into_inner());
        let known = allocations.remove(&address);
        drop(allocations);
        let pages = Emulator::pages(bytes);
        let before = pages - bytes.next_multiple_of(ALIGNMENT);
        // SAFETY: memory of `allocate`, which nobody holds any more.
        let beside = unsafe {
            let inner = (address as *mut u8).sub(before);
            let all = std::slice::from_raw_parts(inner, pages);
            let touched = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0xff);
            let beside = touched(&all[..before]) || touched(&all[before + bytes..]);
            let _ = munmap(inner.sub(PAGE).cast(), pages + 2 * PAGE);
            beside
        };
        if !std::thread::panicking() {
            assert_eq!(known, Some(bytes), "memory that isn't the emulator's");
            assert!(!beside, "something was written beside a buffer of {bytes} bytes");
        }
    }

    pub fn copy_in<T: Element>(&self, to: u64, values: &[T]) -> Result<(), Error> {
        // SAFETY: as many elements on both sides.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), to as *mut T, values.len()) };
        Ok(())
    }

    pub fn copy_out<T: Element>(&self, from: u64, values: &mut [T]) -> Result<(), Error> {
        // SAFETY: as many elements on both sides, of which all bits are values.
        unsafe { ptr::copy_nonoverlapping(from as *const T, values.as_mut_ptr(), values.len()) };
        Ok(())
    }

    pub fn perform(&self, work: &Work) -> Result<(), Error> {
        match work {
            Work::Launch { kernel, shape, args } => launch(kernel, *shape, args),
            Work::Product(product) => {
                // SAFETY: operands of the lengths that their shapes say.
                unsafe { product.plain() };
                Ok(())
            }
            Work::Copy { to, from, bytes } => {
                // SAFETY: slices of that many bytes.
                unsafe { ptr::copy(*from as *const u8, *to as *mut u8, *bytes) };
                Ok(())
            }
            Work::Zero { to, bytes } => {
                // SAFETY: a slice of that many bytes.
                unsafe { (*to as *mut u8).write_bytes(0, *bytes) };
                Ok(())
            }
        }
    }
}

fn launch(kernel: &Kernel, shape: Shape, args: &[u64]) -> Result<(), Error> {
    let refused = |reason: String| Error::Launch { kernel: kernel.name.into(), reason };
    let mut libraries = LIBRARIES.lock().unwrap_or_else(|e| e.into_inner());
    let place = match libraries.loaded.iter().position(|(source, _)| *source == kernel.source) {
        Some(place) => place,
        None => {
            let file = build(kernel.source)?;
            // SAFETY: a library that was built from our source: no constructors.
            let library = unsafe { libloading::Library::new(&file) };
            let library = library.map_err(|e| refused(e.to_string()))?;
            libraries.loaded.push((kernel.source, library));
            libraries.loaded.len() - 1
        }
    };
    libraries.launches += 1;
    let reversed = i32::from(libraries.launches.is_multiple_of(2));
    let library = &libraries.loaded[place].1;
    let mut args = args.to_vec();
    let mut pointers: Vec<*mut c_void> =
        args.iter_mut().map(|arg| ptr::from_mut(arg).cast()).collect();
    let name = CString::new(kernel.name).map_err(|e| refused(e.to_string()))?;
    let grid = shape.grid.map(|n| n as u32);
    // SAFETY: the types are those of emulated.h; the arguments are of the kernel's kinds, and the
    // message stays until the next launch.
    unsafe {
        let entry = library.get::<Entry>(format!("{}_emulated", kernel.name));
        let launch = library.get::<Launch>("emulated_launch");
        let (entry, launch) = (
            entry.map_err(|e| refused(e.to_string()))?,
            launch.map_err(|e| refused(e.to_string()))?,
        );
        let message = launch(
            *entry,
            name.as_ptr(),
            grid.as_ptr(),
            shape.block as u32,
            shape.shared,
            pointers.as_mut_ptr(),
            reversed,
        );
        if message.is_null() {
            return Ok(());
        }
        Err(refused(CStr::from_ptr(message).to_string_lossy().into_owned()))
    }
}

/// The shared library of a source.
fn build(source: usize) -> Result<PathBuf, Error> {
    let source_name = SOURCES[source].name;
    let failed =
        |log: String| Error::Compile { source_name, architecture: "the emulator".into(), log };
    let mut text = format!(
        "{}\n#line 1 \"device.h\"\n{DEVICE}\n#line 1 \"{source_name}\"\n{}\n",
        include_str!("kernels/emulated.h"),
        SOURCES[source].text
    );
    for kernel in kernels::of(source, SOURCES[source].text) {
        let name = kernel.name;
        text += &format!(
            "extern \"C\" void {name}_emulated(void** arguments) {{ emulated::call({name}, arguments); }}\n"
        );
    }
    let options = [
        "-O2",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-fno-exceptions",
        "-fno-strict-aliasing",
        "-Wall",
        "-Wno-unused-function",
        "-Wno-unknown-pragmas",
    ];
    let key = blake3::hash(format!("{options:?}{text}").as_bytes()).to_hex();
    // Beside the program, in Cargo's target folder.
    let program = env::current_exe().ok();
    let beside = program.as_ref().and_then(|program| program.parent());
    let folder = beside.map_or_else(env::temp_dir, Path::to_path_buf).join("emulated");
    let file = folder.join(format!("{source_name}-{}.so", &key[..32]));
    if file.exists() {
        return Ok(file);
    }
    let compile = || -> std::io::Result<Result<(), String>> {
        fs::create_dir_all(&folder)?;
        let work = tempfile::tempdir_in(&folder)?;
        let (input, output) = (work.path().join("source.cpp"), work.path().join("library.so"));
        fs::write(&input, &text)?;
        let compiler = env::var_os("CXX").unwrap_or("c++".into());
        let ran =
            Command::new(compiler).args(options).arg("-o").arg(&output).arg(&input).output()?;
        let log = String::from_utf8_lossy(&ran.stderr);
        if !ran.status.success() {
            return Ok(Err(log.into_owned()));
        }
        if !log.is_empty() {
            eprint!("{log}");
        }
        fs::rename(&output, &file)?;
        Ok(Ok(()))
    };
    match compile() {
        Ok(Ok(())) => Ok(file),
        Ok(Err(log)) => Err(failed(log)),
        Err(error) => Err(failed(format!("the C++ compiler could not be run: {error}"))),
    }
}

#[cfg(test)]
mod tests;
