//! Products of matrices, by cuBLASLt: operands of bf16 or f32, sums in f32.
//!
//! cuBLASLt counts by columns; the transpose of a matrix by rows is the same memory, so `c = a b` is
//! asked for as `cᵀ = bᵀ aᵀ`.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ptr;
use std::sync::{Arc, Mutex};

use cudarc::cublaslt::sys::{
    self, cublasLtMatmulDescAttributes_t as DescAttribute,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cublasStatus_t, cudaDataType_t,
};

use crate::gpu::Memory;
use crate::{Error, Gpu, Slice, SliceMut};

/// An operand: a matrix by rows, or what becomes of it by transposing.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: Values<'a>,
    /// As it lies.
    rows: usize,
    cols: usize,
    transposed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Values<'a> {
    F32(Slice<'a, f32>),
    Bf16(Slice<'a, u16>),
}

impl<'a> Matrix<'a> {
    /// `[rows, cols]` of f32.
    ///
    /// # Panics
    /// If it isn't of that length.
    pub fn f32(x: Slice<'a, f32>, rows: usize, cols: usize) -> Matrix<'a> {
        assert_eq!(x.len(), rows * cols, "a matrix of {rows} rows, {cols} columns");
        Matrix { values: Values::F32(x), rows, cols, transposed: false }
    }

    /// `[rows, cols]` of bf16.
    ///
    /// # Panics
    /// If it isn't of that length.
    pub fn bf16(x: Slice<'a, u16>, rows: usize, cols: usize) -> Matrix<'a> {
        assert_eq!(x.len(), rows * cols, "a matrix of {rows} rows, {cols} columns");
        Matrix { values: Values::Bf16(x), rows, cols, transposed: false }
    }

    /// Its transpose, without moving anything.
    pub fn t(self) -> Matrix<'a> {
        Matrix { transposed: !self.transposed, ..self }
    }

    fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    fn is_bf16(&self) -> bool {
        matches!(self.values, Values::Bf16(_))
    }

    fn address(&self) -> u64 {
        match self.values {
            Values::F32(x) => x.address(),
            Values::Bf16(x) => x.address(),
        }
    }

    fn memory(&self) -> &'a Arc<Memory> {
        match self.values {
            Values::F32(x) => x.memory(),
            Values::Bf16(x) => x.memory(),
        }
    }
}

/// `c = a b`, or with `more` `c += a b`. `a`: `[m, k]`, `b`: `[k, n]`, both of one type; `c`:
/// `[m, n]`. Products of bf16 are exact in f32, sums are f32.
///
/// # Errors
/// [`Error::Product`]; [`Error::OutOfMemory`] for cuBLASLt's workspace.
///
/// # Panics
/// If shapes or types don't fit each other.
pub fn matmul(
    gpu: &Gpu,
    a: Matrix<'_>,
    b: Matrix<'_>,
    mut c: SliceMut<'_, f32>,
    more: bool,
) -> Result<(), Error> {
    let ((m, k), (inner, n)) = (a.shape(), b.shape());
    assert_eq!(inner, k, "columns of the first and rows of the second operand");
    assert_eq!(c.len(), m * n, "a product of [{m}, {k}] and [{k}, {n}]");
    assert_eq!(a.is_bf16(), b.is_bf16(), "types of the operands");
    if k == 0 && !more {
        return c.zero();
    }
    if m == 0 || n == 0 || k == 0 {
        return Ok(());
    }
    let shape =
        ProductShape { m, n, k, transposed: [a.transposed, b.transposed], bf16: a.is_bf16(), more };
    let c = c.as_slice();
    let product = Product { shape, a: a.address(), b: b.address(), c: c.address() };
    gpu.product(&product, [a.memory(), b.memory(), c.memory()].into_iter())
}

/// What a product is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProductShape {
    m: usize,
    n: usize,
    k: usize,
    transposed: [bool; 2],
    bf16: bool,
    more: bool,
}

/// A product of matrices at addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    shape: ProductShape,
    a: u64,
    b: u64,
    c: u64,
}

#[cfg(feature = "emulator")]
impl Product {
    /// The product by loops, in the host's memory.
    ///
    /// # Safety
    /// The operands are as long as the shape says.
    pub(crate) unsafe fn plain(&self) {
        let ProductShape { m, n, k, transposed, bf16, more } = self.shape;
        let at = |address: u64, i: usize| {
            // SAFETY: inside of the operand.
            unsafe {
                if bf16 {
                    let bits = (address as *const u16).add(i).read();
                    f32::from_bits(u32::from(bits) << 16)
                } else {
                    (address as *const f32).add(i).read()
                }
            }
        };
        let c = self.c as *mut f32;
        for row in 0..m {
            for col in 0..n {
                let terms = (0..k).map(|i| {
                    let a = at(self.a, if transposed[0] { i * m + row } else { row * k + i });
                    let b = at(self.b, if transposed[1] { col * k + i } else { i * n + col });
                    f64::from(a) * f64::from(b)
                });
                let sum = terms.sum::<f64>() as f32;
                // SAFETY: inside of the result.
                unsafe {
                    let c = c.add(row * n + col);
                    c.write(if more { c.read() + sum } else { sum });
                }
            }
        }
    }
}

/// cuBLASLt, with its workspace and how it does the products that it has been asked for.
pub(crate) struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: Mutex<HashMap<Asked, Plan>>,
}

/// A shape and the alignments of a, b and c.
type Asked = (ProductShape, [u32; 3]);

/// How a product is done.
struct Plan {
    description: Description,
    layouts: [Layout; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

struct Description(sys::cublasLtMatmulDesc_t);
struct Layout(sys::cublasLtMatrixLayout_t);
struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe {
            let _ = sys::cublasLtMatmulDescDestroy(self.0);
        }
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe {
            let _ = sys::cublasLtMatrixLayoutDestroy(self.0);
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe {
            let _ = sys::cublasLtMatmulPreferenceDestroy(self.0);
        }
    }
}

/// Plans that are kept. There are as many as shapes, and prompts have many lengths.
const PLANS: usize = 4096;

impl Lt {
    /// Bytes of the workspace, as NVIDIA advises for Hopper.
    pub(crate) const WORKSPACE: usize = 32 << 20;

    /// Takes the workspace, which lies on the card that is current.
    pub(crate) fn new(workspace: u64) -> Result<Lt, Error> {
        let mut handle = ptr::null_mut();
        // SAFETY: the library is there; a pointer of what it writes.
        let result = unsafe { sys::cublasLtCreate(&mut handle) };
        check(result, || "nothing yet".into())?;
        Ok(Lt { handle, workspace, plans: Mutex::default() })
    }

    /// Ends it, and gives the workspace back.
    pub(crate) fn close(self) -> u64 {
        self.plans.lock().unwrap_or_else(|e| e.into_inner()).clear();
        // SAFETY: destroyed once.
        unsafe {
            let _ = sys::cublasLtDestroy(self.handle);
        }
        self.workspace
    }

    /// Gives the product to the stream.
    ///
    /// # Safety
    /// The operands are on this card, as long as the shape says.
    pub(crate) unsafe fn product(
        &self,
        product: &Product,
        stream: cudarc::driver::sys::CUstream,
    ) -> Result<(), Error> {
        let Product { shape, a, b, c } = *product;
        let alignments = [a, b, c].map(|address| 1 << address.trailing_zeros().min(8));
        let mut plans = self.plans.lock().unwrap_or_else(|e| e.into_inner());
        if plans.len() >= PLANS {
            plans.clear();
        }
        let plan = match plans.entry((shape, alignments)) {
            std::collections::hash_map::Entry::Occupied(plan) => plan.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(self.plan(shape, alignments)?)
            }
        };
        let (one, beta) = (1f32, if shape.more { 1f32 } else { 0f32 });
        let [a_layout, b_layout, c_layout] = &plan.layouts;
        // SAFETY: descriptors of this handle; the factors are read before it returns. The second operand
        // goes first, see above.
        let result = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.description.0,
                ptr::from_ref(&one).cast(),
                b as *const _,
                b_layout.0,
                a as *const _,
                a_layout.0,
                ptr::from_ref(&beta).cast(),
                c as *const _,
                c_layout.0,
                c as *mut _,
                c_layout.0,
                &plan.algorithm,
                self.workspace as *mut _,
                Lt::WORKSPACE,
                stream.cast(),
            )
        };
        check(result, || format!("{shape:?}"))
    }

    /// The library's own choice for a shape. It is the same in every run.
    fn plan(&self, shape: ProductShape, alignments: [u32; 3]) -> Result<Plan, Error> {
        let ProductShape { m, n, k, transposed, bf16, .. } = shape;
        let named = || format!("{shape:?}");
        let operand = if bf16 { cudaDataType_t::CUDA_R_16BF } else { cudaDataType_t::CUDA_R_32F };
        let f32 = cudaDataType_t::CUDA_R_32F;
        let layout = |kind, rows: usize, cols: usize| {
            let mut made = ptr::null_mut();
            // SAFETY: a pointer of what it writes. Columns of theirs are rows of ours.
            let result = unsafe {
                sys::cublasLtMatrixLayoutCreate(
                    &mut made,
                    kind,
                    cols as u64,
                    rows as u64,
                    cols as i64,
                )
            };
            check(result, named).map(|()| Layout(made))
        };
        let as_lies = |rows, cols, transposed| if transposed { (cols, rows) } else { (rows, cols) };
        let (a_rows, a_cols) = as_lies(m, k, transposed[0]);
        let (b_rows, b_cols) = as_lies(k, n, transposed[1]);
        let layouts = [
            layout(operand, a_rows, a_cols)?,
            layout(operand, b_rows, b_cols)?,
            layout(f32, m, n)?,
        ];
        let mut made = ptr::null_mut();
        // SAFETY: pointers of what is written; attributes are of the sizes given.
        unsafe {
            let sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
            check(sys::cublasLtMatmulDescCreate(&mut made, sums, f32), named)?;
            let description = Description(made);
            // Their first operand is our second.
            let which = [
                (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, transposed[1]),
                (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, transposed[0]),
            ];
            for (attribute, transposed) in which {
                // cublasOperation_t: CUBLAS_OP_N is 0, CUBLAS_OP_T 1.
                let operation = i32::from(transposed);
                let (how, bytes) = (ptr::from_ref(&operation).cast(), size_of::<i32>());
                let result =
                    sys::cublasLtMatmulDescSetAttribute(description.0, attribute, how, bytes);
                check(result, named)?;
            }
            let algorithm = self.choose(&description, &layouts, alignments, &named)?;
            Ok(Plan { description, layouts, algorithm })
        }
    }

    /// # Safety
    /// The descriptors are this handle's.
    unsafe fn choose(
        &self,
        description: &Description,
        [a, b, c]: &[Layout; 3],
        alignments: [u32; 3],
        named: &dyn Fn() -> String,
    ) -> Result<sys::cublasLtMatmulAlgo_t, Error> {
        let mut made = ptr::null_mut();
        // SAFETY: pointers of what is written; attributes are of the sizes given.
        unsafe {
            check(sys::cublasLtMatmulPreferenceCreate(&mut made), named)?;
            let preference = Preference(made);
            let set = |attribute, value: *const std::ffi::c_void, bytes| {
                let set = sys::cublasLtMatmulPreferenceSetAttribute;
                check(set(preference.0, attribute, value, bytes), named)
            };
            let most = PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let workspace = Lt::WORKSPACE as u64;
            set(most, ptr::from_ref(&workspace).cast(), size_of::<u64>())?;
            let [of_a, of_b, of_c] = alignments;
            let aligned = [
                (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_b),
                (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_a),
                (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_c),
                (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_c),
            ];
            for (attribute, bytes) in aligned {
                set(attribute, ptr::from_ref(&bytes).cast(), size_of::<u32>())?;
            }
            let mut found = std::mem::zeroed::<sys::cublasLtMatmulHeuristicResult_t>();
            let mut count = 0;
            let result = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                description.0,
                b.0,
                a.0,
                c.0,
                c.0,
                preference.0,
                1,
                &mut found,
                &mut count,
            );
            check(result, named)?;
            if count == 0 {
                check(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED, named)?;
            }
            check(found.state, named)?;
            Ok(found.algo)
        }
    }
}

fn check(result: cublasStatus_t, shape: impl Fn() -> String) -> Result<(), Error> {
    match result {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        _ => Err(Error::Product { shape: shape(), reason: format!("{result:?}") }),
    }
}
