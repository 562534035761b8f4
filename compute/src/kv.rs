//! Keys and values of sequences that are being generated, in pages of 64 positions (Kwon et al.
//! 2023). A page is attention's key block, stored as its kernel reads it: keys transposed. Pages
//! count their users, so that sequences with the same beginning share its pages.
#![allow(unsafe_code)]

use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::aligned::Aligned;
use crate::bytes::Bytes;
use crate::cpu::Cpu;
use crate::cpu::attention::CachedSpan;
use crate::cpu::rows::Parts;
use crate::pool::Pool;
use crate::simd::{Cache, LANES, at, prefetch};

/// Positions in a page.
pub const PAGE: usize = 64;

/// Elements of a head that share a scale in [`KvType::Q8`].
const GROUP: usize = 32;

/// What keys and values are rounded to when they are stored. Attention reads what is stored, a token's own
/// key included, so that results depend on the type, but not on how tokens were batched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// As they are.
    #[default]
    F32,
    /// Half precision: numbers up to 65,504.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Integers of 13 bits in 16, a head to a scale (f32). Attention multiplies them by queries and weights that are
    /// rounded to integers too (queries of heads over 64 elements to fewer bits), and its sums are exact. Less exact
    /// than [`KvType::F16`], more than products in bf16.
    Q16,
    /// Eight bits, 32 elements of a head to a scale (f32).
    Q8,
}

impl std::str::FromStr for KvType {
    type Err = String;

    fn from_str(name: &str) -> Result<KvType, String> {
        let mut all = KvType::ALL.into_iter();
        all.find(|kind| kind.name() == name)
            .ok_or_else(|| format!("one of {}", KvType::ALL.map(KvType::name).join(", ")))
    }
}

impl KvType {
    /// All of them.
    pub const ALL: [KvType; 5] = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q16, KvType::Q8];

    /// Its name: `f32`, `f16`, `bf16`, `q16`, `q8`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Bf16 => "bf16",
            KvType::Q16 => "q16",
            KvType::Q8 => "q8",
        }
    }

    /// Bytes of 64 elements; with [`KvType::Q8`] of their codes.
    fn line(self) -> usize {
        match self {
            KvType::F32 => 4 * PAGE,
            KvType::F16 | KvType::Bf16 | KvType::Q16 => 2 * PAGE,
            KvType::Q8 => PAGE,
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// A page of a [`KvPages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(u32);

impl PageId {
    /// Which of the cache's pages.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// What can go wrong with pages.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KvError {
    /// More memory than there is.
    #[error(
        "a key/value cache of {pages} pages of {PAGE} positions ({bytes} bytes) does not fit: use fewer pages"
    )]
    TooLarge {
        /// Pages asked for.
        pages: usize,
        /// Bytes they take, as far as that can be counted.
        bytes: usize,
    },
    /// Released too often, or never allocated here.
    #[error("page {0} of the key/value cache is not in use")]
    NotInUse(u32),
    /// A page has more users than can be counted.
    #[error("page {0} of the key/value cache has too many users")]
    TooManyUsers(u32),
    /// All pages are in use.
    #[error("all pages of the key/value cache are in use")]
    OutOfPages,
}

/// The pages of one model. A page holds, layer by layer and head by head, keys `[head_dim, 64]` and
/// values `[64, head_dim rounded up to 16]`, then for [`KvType::Q8`] the scales of 32 elements: of keys
/// `[groups, 64]`, of values `[64, groups]`. With [`KvType::Q16`] two elements that are summed one after the other are
/// side by side, keys `[head_dim / 2, 64, 2]` and values `[32, head_dim rounded up to 16, 2]`, then the scales of keys
/// and those of values, 64 each.
pub struct KvPages {
    /// Memory that the system has not given yet, where nothing is kept here.
    data: Aligned,
    on_card: Option<OnCard>,
    /// Users of each page; 0 = free.
    users: Vec<u32>,
    /// Free pages; the last one goes next.
    free: Vec<u32>,
    kind: KvType,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// The pages of a model whose passes are on a card.
pub(crate) struct OnCard {
    pub(crate) shape: cuda::ops::kv::KvShape,
    pub(crate) data: cuda::Buffer<u8>,
    /// Lives as long: by it graphs know the pages that they were recorded with.
    pub(crate) identity: Arc<()>,
}

/// A row of a batch, where the first head of its page begins, and which position of the page it is.
struct Row {
    row: usize,
    place: usize,
    slot: usize,
}

/// One sequence's pages.
#[derive(Clone, Debug, Default)]
pub struct KvSequence {
    /// Pages of positions `0..64`, `64..128`, …
    pub pages: Vec<PageId>,
    /// Positions that are filled.
    pub len: usize,
}

/// Row length of stored values: whole vectors.
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Rows of stored keys.
fn keys(kind: KvType, head_dim: usize) -> Option<usize> {
    if kind == KvType::Q16 { head_dim.checked_next_multiple_of(2) } else { Some(head_dim) }
}

/// Bytes of a head in a page: keys, values, scales; all of them whole cache lines.
fn head_bytes(kind: KvType, head_dim: usize) -> Option<usize> {
    let elements = keys(kind, head_dim)?.checked_add(head_dim.checked_next_multiple_of(LANES)?)?;
    let groups = match kind {
        KvType::Q8 => head_dim.div_ceil(GROUP),
        KvType::Q16 => 1,
        _ => 0,
    };
    elements.checked_mul(kind.line())?.checked_add(groups.checked_mul(8 * PAGE)?)
}

impl KvPages {
    /// Room for `pages` pages.
    ///
    /// # Errors
    /// [`KvError::TooLarge`] if the system does not give the memory.
    pub fn new(
        kind: KvType,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        pages: usize,
    ) -> Result<KvPages, KvError> {
        let head = head_bytes(kind, head_dim);
        let page = head.and_then(|n| n.checked_mul(kv_heads)?.checked_mul(layers));
        let bytes = page.and_then(|n| n.checked_mul(pages)).unwrap_or(usize::MAX);
        let fits = bytes < usize::MAX && pages < u32::MAX as usize;
        let data = if fits { Aligned::zeros(bytes / 4) } else { None };
        let data = data.ok_or(KvError::TooLarge { pages, bytes })?;
        let (users, free) = (vec![0; pages], (0..pages as u32).rev().collect());
        Ok(KvPages { data, on_card: None, users, free, kind, layers, kv_heads, head_dim })
    }

    /// A page with one user and whatever it held before; `None` if all are in use.
    pub fn allocate(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.users[page as usize] = 1;
        Some(PageId(page))
    }

    /// One more user of a page.
    ///
    /// # Errors
    /// If it is not in use.
    pub fn retain(&mut self, page: PageId) -> Result<(), KvError> {
        let users = self.users_mut(page)?;
        *users = users.checked_add(1).ok_or(KvError::TooManyUsers(page.0))?;
        Ok(())
    }

    /// One user less; without any the page is free.
    ///
    /// # Errors
    /// If it is not in use.
    pub fn release(&mut self, page: PageId) -> Result<(), KvError> {
        let users = self.users_mut(page)?;
        *users -= 1;
        if *users == 0 {
            self.free.push(page.0);
        }
        Ok(())
    }

    /// How many users a page has: 0 if it is free. One with several is copied before it is
    /// appended to.
    pub fn users(&self, page: PageId) -> u32 {
        self.users.get(page.0 as usize).copied().unwrap_or(0)
    }

    /// A new page with the contents of `page` and one user.
    ///
    /// # Errors
    /// If all pages are in use, or `page` is not.
    pub fn copy_page(&mut self, page: PageId) -> Result<PageId, KvError> {
        self.users_mut(page)?;
        let copy = self.allocate().ok_or(KvError::OutOfPages)?;
        if let Some(OnCard { shape, data, .. }) = &mut self.on_card {
            let copied =
                cuda::ops::kv::copy_page(shape, data.slice_mut(), page.0 as usize, copy.0 as usize);
            crate::tape::ended(copied);
            return Ok(copy);
        }
        let n = self.page_bytes();
        let from = page.0 as usize * n;
        self.data.bytes_mut().copy_within(from..from + n, copy.0 as usize * n);
        Ok(copy)
    }

    /// Pages that [`KvPages::allocate`] can still give.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// All pages, free or not.
    pub fn total_pages(&self) -> usize {
        self.users.len()
    }

    /// Memory of all pages.
    pub fn bytes(&self) -> usize {
        self.data.len() * 4
    }

    /// The pages on the card, which are made when they are first asked for. Keys and values of [`KvType::F32`] are
    /// rounded to bf16 there, as its tensor cores would, and those of [`KvType::Q16`] to f16.
    pub(crate) fn on_card(&mut self, gpu: &cuda::Gpu) -> Result<&mut OnCard, cuda::Error> {
        use cuda::ops::kv::{self, KvShape};
        let slot = &mut self.on_card;
        Ok(match slot {
            Some(on_card) => on_card,
            None => {
                let kind = match self.kind {
                    KvType::F16 | KvType::Q16 => kv::KvType::F16,
                    KvType::F32 | KvType::Bf16 => kv::KvType::Bf16,
                    KvType::Q8 => kv::KvType::Q8,
                };
                let (layers, kv_heads, head_dim) = (self.layers, self.kv_heads, self.head_dim);
                let shape = KvShape { kind, layers, kv_heads, head_dim };
                let bytes = self.users.len().saturating_mul(shape.page_bytes());
                let what = format!("a key/value cache of {} pages", self.users.len());
                let data = gpu.zeros(bytes, &what)?;
                slot.insert(OnCard { shape, data, identity: Arc::default() })
            }
        })
    }

    /// Rounds rows of keys and values, `[T, kv_heads * head_dim]`, and stores those of each span in a layer, from
    /// position `past` on.
    ///
    /// # Panics
    /// If a span has no page in use for a position, or sizes do not agree.
    pub fn append(
        &mut self,
        cpu: &Cpu,
        layer: usize,
        spans: &[CachedSpan<'_>],
        k: &[f32],
        v: &[f32],
    ) {
        assert!(k.len() == v.len() && k.len().is_multiple_of(self.width().max(1)));
        let rows: Vec<Row> = spans
            .iter()
            .flat_map(|span| (0..span.rows.len).map(move |i| (span, i)))
            .map(|(span, i)| {
                let (page, slot) = (span.pages[(span.past + i) / PAGE], (span.past + i) % PAGE);
                Row { row: span.rows.start + i, place: self.place(layer, page, 0).start, slot }
            })
            .collect();
        macro_rules! halves {
            ($half:ident) => {
                self.store(&cpu.pool, &rows, k, v, |from, to: &mut [[u8; 2]]| {
                    let mut halves = [$half::ZERO; LANES];
                    halves[..to.len()].convert_from_f32_slice(from);
                    for (x, to) in halves.iter().zip(to) {
                        *to = x.to_le_bytes();
                    }
                })
            };
        }
        match self.kind {
            KvType::F32 => self.store(&cpu.pool, &rows, k, v, |from, to: &mut [[u8; 4]]| {
                for (x, to) in from.iter().zip(to) {
                    *to = x.to_le_bytes();
                }
            }),
            KvType::F16 => halves!(f16),
            KvType::Bf16 => halves!(bf16),
            KvType::Q16 => self.store_codes(cpu, &rows, k, v),
            KvType::Q8 => {
                let ((k, k_scales), (v, v_scales)) = (self.eighths(k), self.eighths(v));
                self.store(&cpu.pool, &rows, &k, &v, |from: &[[u8; 1]], to| {
                    to.copy_from_slice(from)
                });
                self.store_scales(&rows, &k_scales, &v_scales);
            }
        }
    }

    /// Puts elements, made `N` bytes each by `convert` (at most 16 at a time), to their places. A key's go
    /// to as many cache lines: threads share heads and parts of them, which no two rows have in common.
    fn store<T: Copy + Sync, const N: usize>(
        &mut self,
        pool: &Pool,
        rows: &[Row],
        k: &[T],
        v: &[T],
        convert: impl Fn(&[T], &mut [[u8; N]]) + Sync,
    ) {
        let (hd, hdp, width) = (self.head_dim, padded(self.head_dim), self.width());
        let head_bytes = head_bytes(self.kind, hd).unwrap_or(0);
        let parts = hd.div_ceil(LANES);
        let data = Parts::new(self.data.bytes_mut());
        let grain = (1 << 12) / (rows.len() * LANES).max(1) + 1;
        pool.split(self.kv_heads * parts, grain, |tasks| {
            for task in tasks {
                let (head, part) = (task / parts, task % parts);
                let (first, len) = (part * LANES, LANES.min(hd - part * LANES));
                for Row { row, place, slot } in rows {
                    let start = place + head * head_bytes;
                    let from = row * width + head * hd + first;
                    let mut elements = [[0; N]; LANES];
                    convert(&k[from..from + len], &mut elements[..len]);
                    for (d, element) in elements[..len].iter().enumerate() {
                        let at = start + ((first + d) * PAGE + slot) * N;
                        // SAFETY: elements of this task's head and part, here and below.
                        unsafe { data.part(at..at + N) }.copy_from_slice(element);
                    }
                    convert(&v[from..from + len], &mut elements[..len]);
                    let at = start + (PAGE * hd + slot * hdp + first) * N;
                    // SAFETY: see above.
                    let to = unsafe { data.part(at..at + len * N) };
                    to.copy_from_slice(elements[..len].as_flattened());
                }
            }
        });
    }

    /// Puts the codes of rows to their places, and their scales.
    fn store_codes(&mut self, cpu: &Cpu, rows: &[Row], k: &[f32], v: &[f32]) {
        let (head_dim, kv_heads) = (self.head_dim, self.kv_heads);
        let head_bytes = head_bytes(self.kind, head_dim).unwrap_or(0);
        let values = keys(self.kind, head_dim).unwrap_or(0) * self.kind.line();
        let grain = (1 << 13) / self.width().max(1) + 1;
        let data = &Parts::new(self.data.bytes_mut());
        cpu.pool.split(rows.len(), grain, |range| {
            let rows = &rows[range];
            let task = Encode { rows, k, v, kv_heads, head_dim, head_bytes, values, data };
            crate::dispatch!(cpu.isa, store_codes(task: Encode<'_> = task));
        });
    }

    /// Codes of rows, and scales of their heads' groups of 32.
    fn eighths(&self, rows: &[f32]) -> (Vec<[u8; 1]>, Vec<f32>) {
        let mut codes = Vec::with_capacity(rows.len());
        let mut scales = Vec::with_capacity(rows.len() / GROUP + 1);
        for head in rows.chunks_exact(self.head_dim) {
            for group in head.chunks(GROUP) {
                let largest = group.iter().fold(0f32, |most, x| most.max(x.abs()));
                // What is no number stays none: the scale hands it on.
                let broken = group.iter().any(|x| x.is_nan());
                let inverse = if largest > 1e-36 { 127.0 / largest } else { 0.0 };
                scales.push(if broken { f32::NAN } else { largest / 127.0 });
                codes.extend(group.iter().map(|x| [(x * inverse).round_ties_even() as i8 as u8]));
            }
        }
        (codes, scales)
    }

    fn store_scales(&mut self, rows: &[Row], k: &[f32], v: &[f32]) {
        let groups = self.head_dim.div_ceil(GROUP);
        let head_bytes = head_bytes(self.kind, self.head_dim).unwrap_or(0);
        let (of_keys, width) = (groups * PAGE, self.kv_heads * groups);
        for Row { row, place, slot } in rows {
            for head in 0..self.kv_heads {
                let end = (place + (head + 1) * head_bytes) / 4;
                let scales = &mut self.data[end - 2 * of_keys..end];
                let from = row * width + head * groups;
                for g in 0..groups {
                    scales[g * PAGE + slot] = k[from + g];
                }
                scales[of_keys + slot * groups..][..groups]
                    .copy_from_slice(&v[from..from + groups]);
            }
        }
    }

    /// A head in a page, and in `next` what will be read after it, if anything is.
    pub(crate) fn block(
        &self,
        layer: usize,
        page: PageId,
        kv_head: usize,
        next: Option<PageId>,
    ) -> KvBlock<'_> {
        let bytes = &self.data.bytes()[self.place(layer, page, kv_head)];
        let next = next.map(|next| &self.data.bytes()[self.place(layer, next, kv_head)]);
        KvBlock { kind: self.kind, head_dim: self.head_dim, bytes, next }
    }

    /// What they are stored as.
    pub fn kind(&self) -> KvType {
        self.kind
    }

    /// Layers, key/value heads, elements of a head.
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.layers, self.kv_heads, self.head_dim)
    }

    /// Elements of a row of keys.
    fn width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The bytes of a head in a page.
    fn place(&self, layer: usize, page: PageId, head: usize) -> std::ops::Range<usize> {
        assert!(self.users(page) > 0, "page {} is not in use", page.0);
        assert!(layer < self.layers && head < self.kv_heads);
        // Counted when the memory was taken.
        let len = head_bytes(self.kind, self.head_dim).unwrap_or(0);
        let start = page.0 as usize * self.page_bytes() + (layer * self.kv_heads + head) * len;
        start..start + len
    }

    fn page_bytes(&self) -> usize {
        self.layers * self.kv_heads * head_bytes(self.kind, self.head_dim).unwrap_or(0)
    }

    fn users_mut(&mut self, page: PageId) -> Result<&mut u32, KvError> {
        let users = self.users.get_mut(page.0 as usize).filter(|u| **u > 0);
        users.ok_or(KvError::NotInUse(page.0))
    }
}

/// Keys and values of a head in a page, as they are stored.
pub(crate) struct KvBlock<'a> {
    kind: KvType,
    head_dim: usize,
    bytes: &'a [u8],
    /// Of the same head in the page that is read next.
    next: Option<&'a [u8]>,
}

/// What [`KvType::Q16`] stores of a head in a page.
#[derive(Clone, Copy)]
pub(crate) struct Codes {
    /// Words of two elements of a key, `[head_dim / 2, 64]`.
    pub(crate) keys: *const u8,
    /// Words of an element of two values, `[32, padded head_dim]`.
    pub(crate) values: *const u8,
    /// Of each key, and of each value.
    pub(crate) key_scales: *const f32,
    pub(crate) value_scales: *const f32,
}

/// Largest code of keys and values of [`KvType::Q16`].
pub(crate) const CODE: u16 = 4095;

/// Rows of keys and values that become codes.
struct Encode<'a> {
    rows: &'a [Row],
    k: &'a [f32],
    v: &'a [f32],
    kv_heads: usize,
    head_dim: usize,
    /// Bytes of a head of a page, and where in it the values begin.
    head_bytes: usize,
    values: usize,
    data: &'a Parts<'a, u8>,
}

#[inline(always)]
unsafe fn store_codes<S: Bytes>(task: Encode<'_>) {
    let Encode { rows, k, v, kv_heads, head_dim: hd, head_bytes, values, data } = task;
    let hdp = padded(hd);
    let mut codes = vec![0; hdp];
    for Row { row, place, slot } in rows {
        for head in 0..kv_heads {
            let start = place + head * head_bytes;
            let from = (row * kv_heads + head) * hd;
            // SAFETY: no two rows have the same slot of a page.
            let put = |at: usize, bytes: &[u8]| unsafe {
                data.part(at..at + bytes.len()).copy_from_slice(bytes);
            };
            let [k, v] = [k, v].map(|x| x[from..from + hd].as_ptr());
            // SAFETY: a head, and room for its codes; the instruction set is the caller's promise. Here and below.
            let key = unsafe { encode::<S>(k, hd, f32::from(CODE), codes.as_mut_ptr()) };
            for (i, pair) in codes[..hd.next_multiple_of(2)].as_chunks::<2>().0.iter().enumerate() {
                let [even, odd] = pair.map(|code: i16| code as u16);
                let word = u32::from(even) | u32::from(odd) << 16;
                put(start + (i * PAGE + slot) * 4, &word.to_le_bytes());
            }
            // SAFETY: see above.
            let value = unsafe { encode::<S>(v, hd, f32::from(CODE), codes.as_mut_ptr()) };
            let first = start + values + slot / 2 * hdp * 4 + slot % 2 * 2;
            for (d, code) in codes[..hd].iter().enumerate() {
                put(first + d * 4, &code.to_le_bytes());
            }
            // A key that is no number would weigh nothing: its value tells of it.
            let value = if key.is_nan() { key } else { value };
            let scales = start + head_bytes - 8 * PAGE + slot * 4;
            put(scales, &key.to_le_bytes());
            put(scales + 4 * PAGE, &value.to_le_bytes());
        }
    }
}

/// Writes `n` numbers as codes up to `most`, zeros up to whole vectors after them, and gives what a code stands for; NaN
/// where something is no number.
///
/// # Safety
/// `from` holds the numbers, `to` has room for whole vectors; as for [`Bytes`].
#[inline(always)]
pub(crate) unsafe fn encode<S: Bytes>(from: *const f32, n: usize, most: f32, to: *mut i16) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut largest, mut nothing) = (S::splat(0.0), S::splat(0.0));
        for d in (0..n).step_by(LANES) {
            let x = at::<S>(from, d, n);
            largest = S::max(largest, S::max(x, S::sub(S::splat(0.0), x)));
            nothing = S::fma(x, S::splat(0.0), nothing);
        }
        let (largest, good) = (S::max_lane(largest), S::sum(nothing) == 0.0);
        let inverse = if good && largest > 1e-36 { most / largest } else { 0.0 };
        for d in (0..n).step_by(LANES) {
            S::store_shorts(to.add(d), S::mul(at::<S>(from, d, n), S::splat(inverse)));
        }
        if good { largest / most } else { f32::NAN }
    }
}

/// Keys `[head_dim, 64]` and values `[64, padded head_dim]` of a type, or codes of both.
pub(crate) enum Stored {
    Q16(Codes),
    F32(*const f32, *const f32),
    F16(*const f16, *const f16),
    Bf16(*const bf16, *const bf16),
}

impl KvBlock<'_> {
    /// Where they lie, if attention can take them from there.
    pub(crate) fn stored(&self) -> Option<Stored> {
        let rows = keys(self.kind, self.head_dim).unwrap_or(0);
        let keys = self.bytes.as_ptr();
        let values = keys.wrapping_add(rows * self.kind.line());
        let scales = self.bytes.as_ptr_range().end.cast::<f32>();
        match self.kind {
            KvType::Q16 => Some(Stored::Q16(Codes {
                keys,
                values,
                key_scales: scales.wrapping_sub(2 * PAGE),
                value_scales: scales.wrapping_sub(PAGE),
            })),
            KvType::F32 => Some(Stored::F32(keys.cast(), values.cast())),
            KvType::F16 => Some(Stored::F16(keys.cast(), values.cast())),
            KvType::Bf16 => Some(Stored::Bf16(keys.cast(), values.cast())),
            KvType::Q8 => None,
        }
    }

    /// Asks for all of the next block.
    pub(crate) fn ask_far(&self) {
        for line in self.next.unwrap_or(&[]).chunks(LINE) {
            prefetch(line.as_ptr(), Cache::Second);
        }
    }

    /// Widens them into `k` and `v`, while the next ones are asked for.
    ///
    /// # Safety
    /// `k` and `v` have room; as for [`Bytes`].
    #[inline(always)]
    pub(crate) unsafe fn widen<S: Bytes>(&self, k: *mut f32, v: *mut f32) {
        let (hd, hdp) = (self.head_dim, padded(self.head_dim));
        let groups = hd.div_ceil(GROUP);
        let scales = self.bytes.as_ptr_range().end.cast::<f32>();
        let (key_scales, value_scales) =
            (scales.wrapping_sub(2 * groups * PAGE), scales.wrapping_sub(groups * PAGE));
        // Sixteen elements from `$i` on of row `$row`, which begins at `$from`.
        macro_rules! widen {
            ($from:ident, $row:ident, $i:ident: $keys:expr, $values:expr) => {{
                let line = self.kind.line();
                for $row in 0..hd {
                    let $from = self.bytes.as_ptr().add($row * line);
                    self.ask($row * line, line);
                    for $i in (0..PAGE).step_by(LANES) {
                        S::store(k.add($row * PAGE + $i), $keys);
                    }
                }
                let values = self.bytes.as_ptr().add(hd * line);
                let line = hdp * line / PAGE;
                for $row in 0..PAGE {
                    let $from = values.add($row * line);
                    self.ask(hd * self.kind.line() + $row * line, line);
                    for $i in (0..hdp).step_by(LANES) {
                        S::store(v.add($row * hdp + $i), $values);
                    }
                }
            }};
            ($from:ident, $i:ident: $load:expr) => {
                widen!($from, row, $i: $load, $load)
            };
        }
        // SAFETY: the block holds what its type says, and `k` and `v` have room.
        unsafe {
            match self.kind {
                KvType::F32 => widen!(from, i: S::load(from.cast::<f32>().add(i))),
                KvType::F16 => widen!(from, i: S::load_f16(from.cast::<u16>().add(i))),
                KvType::Bf16 => widen!(from, i: S::load_bf16(from.cast::<u16>().add(i))),
                KvType::Q16 => unreachable!("codes are taken from where they lie"),
                KvType::Q8 => widen!(from, row, i:
                    S::mul(S::load_i8(from.add(i)), S::load(key_scales.add(row / GROUP * PAGE + i))),
                    S::mul(
                        S::load_i8(from.add(i)),
                        S::splat(*value_scales.add(row * groups + i / GROUP))
                    )
                ),
            }
        }
    }

    /// Asks for what is as far in the next block.
    #[inline(always)]
    fn ask(&self, at: usize, len: usize) {
        if let Some(next) = self.next {
            for line in (0..len).step_by(LINE) {
                prefetch(next.as_ptr().wrapping_add(at + line), Cache::First);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted() {
        let mut pages = KvPages::new(KvType::F32, 2, 1, 3, 2).expect("small");
        let (a, b) = (pages.allocate().expect("free"), pages.allocate().expect("free"));
        assert_ne!(a, b);
        assert_eq!((pages.allocate(), pages.free_pages()), (None, 0));
        assert_eq!(pages.copy_page(a), Err(KvError::OutOfPages));
        pages.retain(a).expect("in use");
        assert_eq!(pages.users(a), 2);
        pages.release(a).expect("in use");
        assert_eq!(pages.free_pages(), 0);
        pages.release(a).expect("in use");
        assert_eq!(pages.free_pages(), 1);
        assert_eq!(pages.release(a), Err(KvError::NotInUse(a.0)));
        assert_eq!(pages.retain(a), Err(KvError::NotInUse(a.0)));
        assert_eq!(pages.copy_page(a), Err(KvError::NotInUse(a.0)));
        assert_eq!(pages.free_pages(), 1, "misuse changes nothing");
        assert_eq!(pages.allocate(), Some(a));
        assert_eq!(pages.release(PageId(7)), Err(KvError::NotInUse(7)));
    }

    /// Stores rows from a position on, in the last layer.
    fn append(pages: &mut KvPages, ids: &[PageId], past: usize, k: &[f32], v: &[f32]) {
        let rows = crate::Span { start: 0, len: k.len() / pages.width() };
        let span = CachedSpan { rows, past, pages: ids };
        pages.append(&Cpu::new(2), pages.layers - 1, &[span], k, v);
    }

    /// Keys and values of a block, widened.
    fn widened(pages: &KvPages, layer: usize, page: PageId, head: usize) -> (Vec<f32>, Vec<f32>) {
        let hd = pages.head_dim;
        let (mut k, mut v) = (vec![0.0; hd * PAGE], vec![0.0; PAGE * padded(hd)]);
        let block = pages.block(layer, page, head, Some(page));
        if let Some(Stored::Q16(codes)) = block.stored() {
            // SAFETY: a block of codes.
            let code = |p: *const u8, at: usize| unsafe { *p.cast::<i16>().add(at) };
            // SAFETY: a scale for each key and value.
            let scale = |p: *const f32, slot: usize| unsafe { *p.add(slot) };
            for (at, k) in k.iter_mut().enumerate() {
                let (d, slot) = (at / PAGE, at % PAGE);
                let code = code(codes.keys, (d / 2 * PAGE + slot) * 2 + d % 2);
                *k = f32::from(code) * scale(codes.key_scales, slot);
            }
            for (at, v) in v.iter_mut().enumerate() {
                let (slot, d) = (at / padded(hd), at % padded(hd));
                let code = code(codes.values, (slot / 2 * padded(hd) + d) * 2 + slot % 2);
                *v = f32::from(code) * scale(codes.value_scales, slot);
            }
            return (k, v);
        }
        // SAFETY: there is room; plain Rust runs anywhere.
        unsafe { block.widen::<crate::simd::Portable>(k.as_mut_ptr(), v.as_mut_ptr()) };
        (k, v)
    }

    #[test]
    fn contents_go_where_they_belong_and_copies_are_apart() {
        let (layers, heads) = (2, 2);
        for (kind, hd) in [
            (KvType::F32, 3),
            (KvType::F16, 5),
            (KvType::Bf16, 33),
            (KvType::Q16, 3),
            (KvType::Q16, 34),
            (KvType::Q8, 48),
            (KvType::Q8, 3),
        ] {
            let mut pages = KvPages::new(kind, layers, heads, hd, 3).expect("small");
            let ids = [pages.allocate().expect("free"), pages.allocate().expect("free")];
            let width = heads * hd;
            // Small integers, which all types but the last hold as they are.
            let k: Vec<f32> = (0..5 * width).map(|i| (i * 31 % 127) as f32).collect();
            let v: Vec<f32> = k.iter().map(|x| -x).collect();
            append(&mut pages, &ids, 62, &k, &v);
            let copy = pages.copy_page(ids[1]).expect("one left");
            append(&mut pages, &[ids[0], copy], 64, &vec![9.0; width], &vec![9.0; width]);
            let most = match kind {
                KvType::Q8 => 0.51,
                KvType::Q16 => 0.016,
                _ => 0.0,
            };
            for (i, position) in (62..67).enumerate() {
                for h in 0..heads {
                    let (keys, values) = widened(&pages, 1, ids[position / PAGE], h);
                    for d in 0..hd {
                        let x = k[i * width + h * hd + d];
                        let (key, value) = (
                            keys[d * PAGE + position % PAGE],
                            values[position % PAGE * padded(hd) + d],
                        );
                        assert!((key - x).abs() <= most && (value + x).abs() <= most, "{kind:?}");
                    }
                }
            }
            let (copied, original) =
                (widened(&pages, 1, copy, 0).0, widened(&pages, 1, ids[1], 0).0);
            assert!((copied[0] - 9.0).abs() < 1e-5 && copied[1] == original[1], "{kind:?}");
            assert!(widened(&pages, 0, ids[0], 0).0.iter().all(|x| *x == 0.0), "the other layer");
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for kind in KvType::ALL {
            let mut pages = KvPages::new(kind, 1, 1, 4, 1).expect("small");
            let page = pages.allocate().expect("free");
            append(&mut pages, &[page], 0, &[1.0, f32::NAN, 2.0, 3.0], &[0.0; 4]);
            let (keys, values) = widened(&pages, 0, page, 0);
            assert!(keys[PAGE].is_nan(), "{kind:?}");
            assert!(
                if kind == KvType::Q16 { values[0].is_nan() } else { values[0] == 0.0 },
                "{kind:?}"
            );
        }
    }

    #[test]
    fn what_cannot_fit_is_an_error() {
        for (layers, hd, pages) in [(1, 64, usize::MAX), (usize::MAX, 64, 2), (1, usize::MAX, 1)] {
            assert!(matches!(
                KvPages::new(KvType::F32, layers, 1, hd, pages),
                Err(KvError::TooLarge { .. })
            ));
        }
        assert!(KvPages::new(KvType::Q8, 1 << 20, 1 << 10, 1 << 10, 1 << 10).is_err(), "petabytes");
        assert_eq!(KvPages::new(KvType::F16, 1, 1, 64, 0).map(|p| p.bytes()), Ok(0));
    }
}
