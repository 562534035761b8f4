//! Sources of kernels to code for one kind of card, by NVRTC, kept on disk.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::ptr;
use std::{env, fs};

use cudarc::nvrtc::sys::{self, nvrtcResult};

pub use crate::kernels::{DEVICE, SOURCES, Source};
use crate::{Error, Library};

/// A compiler for cards of one compute capability.
#[derive(Debug)]
pub struct Compiler {
    capability: (u32, u32),
    cache: Option<PathBuf>,
}

impl Compiler {
    /// A compiler that keeps what it makes under `cache`, if there is one.
    pub fn new(capability: (u32, u32), cache: Option<PathBuf>) -> Compiler {
        Compiler { capability, cache }
    }

    /// A compiler with the user's cache: `kernels` in `HOMEGROWN_CACHE` or the user's cache folder.
    pub fn of_user(capability: (u32, u32)) -> Compiler {
        let get = |key: &str| env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = get("HOMEGROWN_CACHE")
            .or_else(|| Some(get("XDG_CACHE_HOME")?.join("homegrown")))
            .or_else(|| Some(get("HOME")?.join(".cache/homegrown")));
        Compiler::new(capability, cache.map(|cache| cache.join("kernels")))
    }

    /// The code of a source: a cubin, or for cards that this NVRTC doesn't know yet PTX (with a zero
    /// at its end), which the driver compiles.
    ///
    /// A cache that can't be read or written is done without.
    ///
    /// # Errors
    /// [`Error::Missing`] without NVRTC; [`Error::Compile`].
    pub fn compile(&self, source: &Source) -> Result<Vec<u8>, Error> {
        Library::Nvrtc.load()?;
        let target = self.target()?;
        let text = format!("{DEVICE}\n#line 1 \"{}\"\n{}", source.name, source.text);
        let version = version()?;
        let file = self.cache.as_ref().map(|cache| {
            let mut key = blake3::Hasher::new();
            for part in [&text, &target.option(), &format!("{version:?}")] {
                key.update(&(part.len() as u64).to_le_bytes());
                key.update(part.as_bytes());
            }
            cache.join(format!("{}-{}", source.name, key.finalize().to_hex()))
        });
        if let Some(code) = file.as_ref().and_then(|file| kept(file)) {
            return Ok(code);
        }
        let code = compile(source.name, &text, target)?;
        if let Some(file) = file {
            // Code that isn't kept is compiled again.
            let _ = keep(&file, &code);
        }
        Ok(code)
    }

    /// What to compile for: the card itself, the nearest older one of its generation, whose code it
    /// runs too, or text for the driver.
    fn target(&self) -> Result<Target, Error> {
        let wanted = self.capability.0 * 10 + self.capability.1;
        let known = architectures()?;
        let nearest = known.iter().copied().filter(|&known| known <= wanted).max();
        match nearest {
            Some(nearest) if nearest / 10 == wanted / 10 => Ok(Target::Code(nearest)),
            Some(nearest) => Ok(Target::Text(nearest)),
            None => Err(Error::Compile {
                source_name: "kernels",
                architecture: format!("compute capability {wanted}"),
                log: format!("this NVRTC knows {known:?}"),
            }),
        }
    }
}

#[derive(Clone, Copy)]
enum Target {
    Code(u32),
    Text(u32),
}

impl Target {
    fn option(self) -> String {
        match self {
            Target::Code(architecture) => format!("--gpu-architecture=sm_{architecture}"),
            Target::Text(architecture) => format!("--gpu-architecture=compute_{architecture}"),
        }
    }
}

/// What is kept in a file: the hash of what follows, and the code.
fn kept(file: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(file).ok()?;
    let (hash, code) = bytes.split_at_checked(blake3::OUT_LEN)?;
    (blake3::hash(code).as_bytes() == hash && !code.is_empty()).then(|| code.to_vec())
}

/// Writes a file that is there whole or not at all.
fn keep(file: &Path, code: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(blake3::hash(code).as_bytes())?;
    new.write_all(code)?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    Ok(())
}

fn check(result: nvrtcResult, doing: &str) -> Result<(), Error> {
    match result {
        nvrtcResult::NVRTC_SUCCESS => Ok(()),
        _ => Err(Error::Driver { doing: doing.into(), reason: format!("{result:?}") }),
    }
}

/// NVRTC's version.
fn version() -> Result<(i32, i32), Error> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there; pointers of what it writes.
    check(unsafe { sys::nvrtcVersion(&mut major, &mut minor) }, "version of NVRTC")?;
    Ok((major, minor))
}

/// What NVRTC can compile for, such as 90.
fn architectures() -> Result<Vec<u32>, Error> {
    let doing = "what NVRTC compiles for";
    let mut count = 0;
    // SAFETY: the library is there; it writes as many numbers as it said.
    unsafe {
        check(sys::nvrtcGetNumSupportedArchs(&mut count), doing)?;
        let mut known = vec![0; count.max(0) as usize];
        check(sys::nvrtcGetSupportedArchs(known.as_mut_ptr()), doing)?;
        Ok(known.into_iter().map(|architecture| architecture as u32).collect())
    }
}

/// A program of NVRTC's, destroyed when it is dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe {
            let _ = sys::nvrtcDestroyProgram(&mut self.0);
        }
    }
}

fn compile(name: &'static str, text: &str, target: Target) -> Result<Vec<u8>, Error> {
    let option = target.option();
    let failed = |log: String| Error::Compile {
        source_name: name,
        architecture: option.rsplit('=').next().unwrap_or_default().into(),
        log,
    };
    let c_string = |text: &str| CString::new(text).map_err(|e| failed(e.to_string()));
    let (text, c_name) = (c_string(text)?, c_string(name)?);
    let options = [c_string(&option)?, c_string("--std=c++17")?];
    let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
    let doing = format!("compiling {name}");
    // SAFETY: texts end in zeros and live until the program is destroyed; buffers are of the sizes
    // that NVRTC says.
    unsafe {
        let mut program = ptr::null_mut();
        let (none, no_names) = (ptr::null(), ptr::null());
        check(
            sys::nvrtcCreateProgram(
                &mut program,
                text.as_ptr(),
                c_name.as_ptr(),
                0,
                none,
                no_names,
            ),
            &doing,
        )?;
        let program = Program(program);
        let result = sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr());
        if result != nvrtcResult::NVRTC_SUCCESS {
            let mut size = 0;
            check(sys::nvrtcGetProgramLogSize(program.0, &mut size), &doing)?;
            let mut log = vec![0u8; size + 1];
            check(sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast()), &doing)?;
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
            return Err(failed(format!("{log}({result:?})")));
        }
        let mut size = 0;
        let code = match target {
            Target::Code(_) => {
                check(sys::nvrtcGetCUBINSize(program.0, &mut size), &doing)?;
                let mut code = vec![0u8; size];
                check(sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()), &doing)?;
                code
            }
            Target::Text(_) => {
                check(sys::nvrtcGetPTXSize(program.0, &mut size), &doing)?;
                let mut code = vec![0u8; size];
                check(sys::nvrtcGetPTX(program.0, code.as_mut_ptr().cast()), &doing)?;
                code
            }
        };
        Ok(code)
    }
}
