//! Finding NVIDIA's libraries: by name where the system looks, then where CUDA's installer and PyPI's
//! wheels put them.
//!
//! `cudarc` opens libraries by name alone and panics if there are none. What is opened here by its
//! path stays open, and the system gives it to whoever asks by name afterwards.
#![allow(unsafe_code)]

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::Error;

/// A library of NVIDIA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The driver.
    Driver,
    /// The compiler of kernels.
    Nvrtc,
    /// Products of matrices.
    CublasLt,
}

impl Library {
    /// Opens it, if it isn't open. An environment variable can name its file: `HOMEGROWN_NVRTC`,
    /// `HOMEGROWN_CUBLASLT`.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn load(self) -> Result<(), Error> {
        static LOADED: Mutex<Vec<Library>> = Mutex::new(Vec::new());
        let mut loaded = LOADED.lock().unwrap_or_else(|e| e.into_inner());
        if loaded.contains(&self) {
            return Ok(());
        }
        let candidates = self.candidates();
        for candidate in &candidates {
            // SAFETY: the constructors of NVIDIA's libraries have no conditions.
            if let Ok(library) = unsafe { libloading::Library::new(candidate) } {
                // Open for as long as the program runs.
                std::mem::forget(library);
                if self.is_present() {
                    loaded.push(self);
                    return Ok(());
                }
            }
        }
        let looked = candidates.iter().map(|c| c.display().to_string()).collect();
        Err(Error::Missing { what: self.what(), advice: self.advice(), looked })
    }

    fn what(self) -> &'static str {
        match self {
            Library::Driver => "the NVIDIA driver's library",
            Library::Nvrtc => "NVRTC, NVIDIA's compiler of kernels,",
            Library::CublasLt => "cuBLASLt, NVIDIA's library of products,",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Library::Driver => {
                "computing on a GPU needs the NVIDIA driver (and in a container its --gpus)"
            }
            Library::Nvrtc => {
                "install CUDA 12 or 13, or `pip install nvidia-cuda-nvrtc-cu12`, or name its file in HOMEGROWN_NVRTC"
            }
            Library::CublasLt => {
                "install CUDA 12 or 13, or `pip install nvidia-cublas-cu12`, or name its file in HOMEGROWN_CUBLASLT"
            }
        }
    }

    /// Whether `cudarc` finds it.
    fn is_present(self) -> bool {
        // SAFETY: they open libraries and close them.
        unsafe {
            match self {
                Library::Driver => cudarc::driver::sys::is_culib_present(),
                Library::Nvrtc => cudarc::nvrtc::sys::is_culib_present(),
                Library::CublasLt => cudarc::cublaslt::sys::is_culib_present(),
            }
        }
    }

    /// Names and paths, in the order in which they are tried.
    fn candidates(self) -> Vec<PathBuf> {
        let (variable, stem, wheel, names): (_, _, _, &[&str]) = match self {
            Library::Driver => ("", "cuda", "", &["libcuda.so.1"]),
            Library::Nvrtc => {
                ("HOMEGROWN_NVRTC", "nvrtc", "cuda_nvrtc", &["libnvrtc.so.13", "libnvrtc.so.12"])
            }
            Library::CublasLt => (
                "HOMEGROWN_CUBLASLT",
                "cublasLt",
                "cublas",
                &["libcublasLt.so.13", "libcublasLt.so.12"],
            ),
        };
        let mut all = Vec::new();
        if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
            all.push(PathBuf::from(path));
        }
        all.extend(names.iter().map(PathBuf::from));
        let folders = match self {
            Library::Driver => driver_folders(),
            _ => toolkit_folders(wheel),
        };
        all.extend(folders.iter().flat_map(|f| names.iter().map(move |name| f.join(name))));
        // Off Linux, the names that `cudarc` knows.
        if !cfg!(target_os = "linux") {
            all.extend(cudarc::get_lib_name_candidates(stem).into_iter().map(PathBuf::from));
        }
        all
    }
}

/// Where drivers lie that the system's own search doesn't find.
fn driver_folders() -> Vec<PathBuf> {
    let known = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/local/nvidia/lib64",
        "/usr/lib/wsl/lib",
        "/run/opengl-driver/lib",
    ];
    known.iter().map(PathBuf::from).filter(|f| f.is_dir()).collect()
}

/// Where CUDA's installer puts libraries, and PyPI's wheels (`wheel` is theirs of CUDA 12).
fn toolkit_folders(wheel: &str) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"]
        .iter()
        .filter_map(env::var_os)
        .map(PathBuf::from)
        .collect();
    roots.push("/usr/local/cuda".into());
    roots.extend(inside(Path::new("/usr/local"), "cuda-1"));
    roots.push("/opt/cuda".into());
    let mut folders: Vec<PathBuf> =
        roots.iter().flat_map(|root| ["lib64", "lib"].map(|lib| root.join(lib))).collect();

    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".local"));
    let pythons = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(env::var_os).map(PathBuf::from);
    for root in pythons.chain(home).chain(["/usr/local".into(), "/usr".into()]) {
        for python in inside(&root.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                let nvidia = python.join(packages).join("nvidia");
                folders.extend([wheel, "cu13"].map(|name| nvidia.join(name).join("lib")));
            }
        }
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// What lies in a folder and begins so, in order of names from the last.
fn inside(folder: &Path, start: &str) -> Vec<PathBuf> {
    let Ok(entries) = folder.read_dir() else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(start))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.reverse();
    found
}
