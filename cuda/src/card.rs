//! A card by the driver: context, stream, memory, modules.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, OnceLock};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use crate::compile::Compiler;
use crate::gpu::{MemoryInfo, Shape};
use crate::kernels::{Kernel, SOURCES};
use crate::matmul::{Lt, Product};
use crate::{Element, Error, Library};

/// Shared memory that a block has without asking.
const SHARED_UNASKED: usize = 48 << 10;

/// An open card.
pub struct Card {
    pub name: String,
    pub capability: (u32, u32),
    pub multiprocessors: usize,
    pub shared_memory: usize,
    number: usize,
    device: sys::CUdevice,
    stream: sys::CUstream,
    /// On which graphs are recorded: the other one goes on with other threads' work.
    recorded: sys::CUstream,
    /// The driver's pool that memory is taken from, if it has one.
    pool: Option<sys::CUmemoryPool>,
    /// Memory that isn't from the pool though there is one.
    apart: Mutex<HashSet<u64>>,
    compiler: OnceLock<Compiler>,
    functions: Mutex<Functions>,
    lt: OnceLock<Lt>,
}

// SAFETY: the handles belong to a driver that all threads may call; what is not a handle has a lock.
unsafe impl Send for Card {}
// SAFETY: as above.
unsafe impl Sync for Card {}

#[derive(Default)]
struct Functions {
    modules: HashMap<usize, sys::CUmodule>,
    /// By source and name.
    functions: HashMap<(usize, &'static str), sys::CUfunction>,
}

/// A recorded graph, ready to be launched.
pub struct Graph(sys::CUgraphExec);

// SAFETY: a handle, as above.
unsafe impl Send for Graph {}
// SAFETY: as above; it is launched from one place, whose stream puts launches in order.
unsafe impl Sync for Graph {}

/// Number of cards.
pub fn count() -> Result<usize, Error> {
    Library::Driver.load()?;
    // SAFETY: the library is there; the pointers live.
    unsafe {
        let started = sys::cuInit(0);
        if started == CUresult::CUDA_ERROR_NO_DEVICE {
            return Ok(0);
        }
        check(started, || "starting the NVIDIA driver".into())?;
        let (mut version, mut count) = (0, 0);
        check(sys::cuDriverGetVersion(&mut version), || "version of the driver".into())?;
        if version < 12_000 {
            let found = (version as u32 / 1000, version as u32 % 1000 / 10);
            return Err(Error::OldDriver { found });
        }
        check(sys::cuDeviceGetCount(&mut count), || "counting cards".into())?;
        Ok(count as usize)
    }
}

impl Card {
    /// Card `number`.
    pub fn open(number: usize) -> Result<Card, Error> {
        let found = count()?;
        if number >= found {
            return Err(Error::NoDevice { wanted: number, found });
        }
        Library::Nvrtc.load()?;
        Library::CublasLt.load()?;
        // SAFETY: the driver has been started; pointers are of what the functions write.
        unsafe {
            let doing = || format!("opening card {number}");
            let mut device = 0;
            check(sys::cuDeviceGet(&mut device, number as i32), doing)?;
            let mut name = [0; 128];
            check(sys::cuDeviceGetName(name.as_mut_ptr(), 127, device), doing)?;
            let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
            let attribute = |attribute| {
                let mut value = 0;
                check(sys::cuDeviceGetAttribute(&mut value, attribute, device), doing)?;
                Ok::<usize, Error>(value.max(0) as usize)
            };
            let capability = (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
            );
            if capability.0 < 8 {
                return Err(Error::TooOld { name, capability });
            }
            let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            let shared_memory =
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
            let pools = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0;
            let mut context = ptr::null_mut();
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device), doing)?;
            let mut card = Card {
                name,
                capability,
                multiprocessors,
                shared_memory,
                number,
                device,
                stream: ptr::null_mut(),
                recorded: ptr::null_mut(),
                pool: None,
                apart: Mutex::default(),
                compiler: OnceLock::new(),
                functions: Mutex::default(),
                lt: OnceLock::new(),
            };
            check(sys::cuCtxSetCurrent(context), doing)?;
            let aside = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            check(sys::cuStreamCreate(&mut card.stream, aside), doing)?;
            check(sys::cuStreamCreate(&mut card.recorded, aside), doing)?;
            if pools {
                card.pool = Some(pool(device, doing)?);
            }
            Ok(card)
        }
    }

    /// Makes the card the one that this thread's calls are about.
    fn bind(&self) -> Result<(), Error> {
        let doing = || format!("card {}", self.number);
        // SAFETY: the device is one; what is retained here for a moment is held since `open`.
        unsafe {
            let mut current = ptr::null_mut();
            check(sys::cuCtxGetCurrent(&mut current), doing)?;
            let mut device = -1;
            if !current.is_null() {
                check(sys::cuCtxGetDevice(&mut device), doing)?;
            }
            if device != self.device {
                let mut context = ptr::null_mut();
                check(sys::cuDevicePrimaryCtxRetain(&mut context, self.device), doing)?;
                check(sys::cuDevicePrimaryCtxRelease_v2(self.device), doing)?;
                check(sys::cuCtxSetCurrent(context), doing)?;
            }
        }
        Ok(())
    }

    /// Where work goes.
    fn stream(&self, recorded: bool) -> sys::CUstream {
        if recorded { self.recorded } else { self.stream }
    }

    pub fn memory(&self) -> Result<MemoryInfo, Error> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: pointers of what it writes.
        unsafe {
            check(sys::cuMemGetInfo_v2(&mut free, &mut total), || "memory of the card".into())?
        };
        Ok(MemoryInfo { free, total })
    }

    pub fn synchronise(&self) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: the stream lives as long as the card.
        unsafe { check(sys::cuStreamSynchronize(self.stream), || "work on the card".into()) }
    }

    /// Memory; `apart` from the order of the stream.
    pub fn allocate(&self, bytes: usize, what: &str, apart: bool) -> Result<u64, Error> {
        self.bind()?;
        let mut address = 0;
        // SAFETY: a pointer of what it writes.
        let mut take = || unsafe {
            match self.pool {
                Some(_) if !apart => sys::cuMemAllocAsync(&mut address, bytes, self.stream),
                _ => sys::cuMemAlloc_v2(&mut address, bytes),
            }
        };
        let mut taken = take();
        if let (CUresult::CUDA_ERROR_OUT_OF_MEMORY, Some(pool)) = (taken, self.pool) {
            // What the pool keeps may be in pieces that are too small, or is wanted apart from it.
            self.synchronise()?;
            // SAFETY: the device's own pool.
            unsafe { check(sys::cuMemPoolTrimTo(pool, 0), || "memory of the card".into())? };
            taken = take();
        }
        if taken == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let MemoryInfo { free, total } = self.memory()?;
            let (name, what) = (self.name.clone(), what.into());
            return Err(Error::OutOfMemory { name, what, bytes, free, total });
        }
        check(taken, || format!("memory for {what}"))?;
        if apart {
            self.apart().insert(address);
        }
        Ok(address)
    }

    fn apart(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.apart.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Gives memory back when the work that has been given is done.
    pub fn release(&self, address: u64) {
        if self.bind().is_err() {
            return;
        }
        let pooled = !self.apart().remove(&address) && self.pool.is_some();
        // What fails here has failed before, and will be told by the next call that can.
        // SAFETY: memory of `allocate`, which nobody holds any more.
        unsafe {
            if pooled {
                let _ = sys::cuMemFreeAsync(address, self.stream);
            } else {
                let _ = sys::cuStreamSynchronize(self.stream);
                let _ = sys::cuMemFree_v2(address);
            }
        }
    }

    pub fn copy_in<T: Element>(&self, to: u64, values: &[T]) -> Result<(), Error> {
        self.bind()?;
        let from = values.as_ptr().cast();
        // SAFETY: as many bytes on both sides; the driver has copied pageable memory when it returns.
        let result =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, size_of_val(values), self.stream) };
        check(result, || "a copy to the card".into())
    }

    pub fn copy_out<T: Element>(&self, from: u64, values: &mut [T]) -> Result<(), Error> {
        self.bind()?;
        let to = values.as_mut_ptr().cast();
        // SAFETY: as many bytes on both sides, any of which are values; waited for below.
        let result =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, size_of_val(values), self.stream) };
        check(result, || "a copy from the card".into())?;
        self.synchronise()
    }

    pub fn copy(&self, to: u64, from: u64, bytes: usize, recorded: bool) -> Result<(), Error> {
        self.bind()?;
        let stream = self.stream(recorded);
        // SAFETY: slices of that many bytes.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream) };
        check(result, || "a copy on the card".into())
    }

    pub fn zero(&self, to: u64, bytes: usize, recorded: bool) -> Result<(), Error> {
        self.bind()?;
        let stream = self.stream(recorded);
        // SAFETY: a slice of that many bytes.
        let result = unsafe { sys::cuMemsetD8Async(to, 0, bytes, stream) };
        check(result, || "zeros on the card".into())
    }

    /// # Safety
    /// The arguments are of the kernel's kinds, and what it does with them stays in their memory.
    pub unsafe fn launch(
        &self,
        kernel: &Kernel,
        shape: Shape,
        mut args: Vec<u64>,
        recorded: bool,
    ) -> Result<(), Error> {
        self.bind()?;
        let function = self.function(kernel)?;
        let mut pointers: Vec<*mut c_void> =
            args.iter_mut().map(|arg| ptr::from_mut(arg).cast()).collect();
        let [x, y, z] = shape.grid.map(|n| n as u32);
        // SAFETY: the arguments live until it returns, which copies them.
        let result = unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                z,
                shape.block as u32,
                1,
                1,
                shape.shared as u32,
                self.stream(recorded),
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        check(result, || format!("launch of {} with {shape:?}", kernel.name))
    }

    /// The function of a kernel, compiled and loaded with its source when it is first asked for.
    fn function(&self, kernel: &Kernel) -> Result<sys::CUfunction, Error> {
        let mut loaded = self.functions.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(function) = loaded.functions.get(&(kernel.source, kernel.name)) {
            return Ok(*function);
        }
        let doing = || format!("loading of {}", kernel.name);
        let module = match loaded.modules.get(&kernel.source) {
            Some(module) => *module,
            None => {
                let compiler = self.compiler.get_or_init(|| Compiler::of_user(self.capability));
                let code = compiler.compile(&SOURCES[kernel.source])?;
                let mut module = ptr::null_mut();
                // SAFETY: code that NVRTC made, a whole image, or text that ends in a zero.
                let result = unsafe { sys::cuModuleLoadData(&mut module, code.as_ptr().cast()) };
                check(result, doing)?;
                loaded.modules.insert(kernel.source, module);
                module
            }
        };
        let name = CString::new(kernel.name)
            .map_err(|e| Error::Driver { doing: doing(), reason: e.to_string() })?;
        let mut function = ptr::null_mut();
        // SAFETY: a module of this card, and pointers that live.
        unsafe {
            check(sys::cuModuleGetFunction(&mut function, module, name.as_ptr()), doing)?;
            self.allow_shared(function, doing)?;
        }
        loaded.functions.insert((kernel.source, kernel.name), function);
        Ok(function)
    }

    /// Lets launches ask for all of the shared memory that the function leaves.
    ///
    /// # Safety
    /// The function is one of this card's.
    unsafe fn allow_shared(
        &self,
        function: sys::CUfunction,
        doing: impl Fn() -> String + Copy,
    ) -> Result<(), Error> {
        use sys::CUfunction_attribute as Attribute;
        let size = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the caller's promise.
        unsafe {
            let mut own = 0;
            check(sys::cuFuncGetAttribute(&mut own, size, function), doing)?;
            let left = self.shared_memory.saturating_sub(own.max(0) as usize);
            if left > SHARED_UNASKED {
                check(sys::cuFuncSetAttribute(function, most, left as i32), doing)?;
            }
        }
        Ok(())
    }

    pub fn product(&self, product: &Product, recorded: bool) -> Result<(), Error> {
        self.bind()?;
        let lt = match self.lt.get() {
            Some(lt) => lt,
            None => {
                let bytes = Lt::WORKSPACE;
                let workspace = self.allocate(bytes, "the workspace of products", true)?;
                let made = Lt::new(workspace)?;
                self.lt.get_or_init(|| made)
            }
        };
        // SAFETY: operands of the lengths that their shapes say, on this card.
        unsafe { lt.product(product, self.stream(recorded)) }
    }

    pub fn begin_capture(&self) -> Result<(), Error> {
        self.bind()?;
        // Other calls, such as the loading of a module, are not the graph's matter.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as the card.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.recorded, mode) };
        check(result, || "recording of a graph".into())
    }

    pub fn end_capture(&self) -> Result<Graph, Error> {
        self.bind()?;
        let doing = || "recording of a graph".into();
        // SAFETY: the stream is being recorded; the graph is destroyed once.
        unsafe {
            let (mut graph, mut ready) = (ptr::null_mut(), ptr::null_mut());
            check(sys::cuStreamEndCapture(self.recorded, &mut graph), doing)?;
            let result = sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0);
            check(sys::cuGraphDestroy(graph), doing)?;
            check(result, doing)?;
            Ok(Graph(ready))
        }
    }

    pub fn launch_graph(&self, graph: &Graph) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: the graph was made for this card and has not been destroyed.
        let result = unsafe { sys::cuGraphLaunch(graph.0, self.stream) };
        check(result, || "launch of a graph".into())
    }
}

/// The device's pool, told to keep what it has.
///
/// # Safety
/// The device is one, and its context is current.
unsafe fn pool(
    device: sys::CUdevice,
    doing: impl Fn() -> String + Copy,
) -> Result<sys::CUmemoryPool, Error> {
    let release = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let (mut pool, mut keep) = (ptr::null_mut(), u64::MAX);
    // SAFETY: the caller's promise; the attribute is a u64.
    unsafe {
        check(sys::cuDeviceGetDefaultMemPool(&mut pool, device), doing)?;
        let keep = ptr::from_mut(&mut keep).cast();
        check(sys::cuMemPoolSetAttribute(pool, release, keep), doing)?;
    }
    Ok(pool)
}

impl Drop for Card {
    fn drop(&mut self) {
        // Errors have been told where work was waited for.
        // SAFETY: nobody holds what is destroyed: memory and graphs keep their card.
        unsafe {
            if !self.stream.is_null() && self.bind().is_ok() {
                let _ = sys::cuStreamSynchronize(self.stream);
                if let Some(lt) = self.lt.take() {
                    let _ = sys::cuMemFree_v2(lt.close());
                }
                let functions = self.functions.get_mut().unwrap_or_else(|e| e.into_inner());
                for module in functions.modules.values() {
                    let _ = sys::cuModuleUnload(*module);
                }
                let _ = sys::cuStreamDestroy_v2(self.stream);
                if !self.recorded.is_null() {
                    let _ = sys::cuStreamDestroy_v2(self.recorded);
                }
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: destroyed once; what is running goes on.
        unsafe {
            let _ = sys::cuGraphExecDestroy(self.0);
        }
    }
}

/// An error of the driver with its name and words.
fn check(result: CUresult, doing: impl Fn() -> String) -> Result<(), Error> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let words = |ask: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
        let mut text = ptr::null();
        // SAFETY: a pointer of what it writes: null, or a text that stays.
        unsafe {
            let _ = ask(result, &mut text);
            if text.is_null() {
                String::new()
            } else {
                CStr::from_ptr(text).to_string_lossy().into()
            }
        }
    };
    let reason = format!("{} ({})", words(sys::cuGetErrorName), words(sys::cuGetErrorString));
    Err(Error::Driver { doing: doing(), reason })
}
