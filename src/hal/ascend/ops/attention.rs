//! Attention over the paged cache by one operator, in whichever of its forms the installed version takes: packed rows of all
//! sequences at once, or rows of equal length. What it cannot do (caps, windows that bind, other block sizes) runs on the host.

use super::super::abi::DataType;
use super::super::context::Context;
use super::super::memory::DeviceMemory;
use super::super::operands::{Ints, List, View, code, is_aligned, none};
use super::super::stream::AscendStream;
use super::paged::{Pages, Tables};
use super::{assert_halves, cast, heads, on_host};
use crate::base::Result;
use crate::hal::Allocation;
use crate::hal::ops::PagedAttention;
use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr::null;
use std::sync::{Arc, Mutex, PoisonError};

/// The only block size that all forms take.
const BLOCK: usize = 128;
const MAX_DIM: usize = 256;
const MAX_RATIO: usize = 64;
const MAX_ROW: usize = 65_535;
const MAX_SEQUENCES: usize = 4096;
/// What a causal mask is cut out of.
const MASK: usize = 2048;
const PACKED: &CStr = c"TND";
const EQUAL: &CStr = c"BSND";
/// Keys are seen up to the query's own, counted from the ends of both.
const CAUSAL: i64 = 3;
const ALL: i64 = 0;
const UNBOUNDED: i64 = 2_147_483_647;

/// In which form the operator takes a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Packed,
    Equal,
    None,
}

/// Dtype, heads, kv heads and head dimension.
type ShapeKey = (i32, usize, usize, usize);

/// I8 `[MASK, MASK]`, 1 where a key is behind its query; and what is known of the operator on this device.
#[derive(Debug)]
pub(crate) struct CausalMask {
    memory: DeviceMemory,
    forms: Mutex<HashMap<ShapeKey, Form>>,
    /// What the operator said of those it does not take as packed rows.
    refused: Mutex<Vec<String>>,
}

impl CausalMask {
    pub(crate) const BYTES: usize = MASK * MASK;

    pub(crate) fn new(context: &Arc<Context>) -> Result<Self> {
        let memory = DeviceMemory::unfilled(context, Self::BYTES).map_err(|e| e.within("the mask of attention"))?;
        let rows = (0..MASK).flat_map(|query| (0..MASK).map(move |key| u8::from(key > query)));
        memory.fill(0, &rows.collect::<Vec<_>>())?;
        Ok(Self { memory, forms: Mutex::default(), refused: Mutex::default() })
    }

    /// Which form each shape has taken so far, and why not packed rows, for people.
    pub(crate) fn facts(&self) -> [String; 2] {
        let forms = self.forms.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |((dtype, heads, kv_heads, dim), form): (&ShapeKey, &Form)| {
            format!("{heads} heads over {kv_heads} of {dim} in aclDataType {dtype}: {form:?}")
        };
        let mut taken: Vec<String> = forms.iter().map(one).collect();
        taken.sort();
        [taken, self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()].map(|lines| lines.join("; "))
    }
}

pub(crate) fn paged_attention(s: &AscendStream, args: &PagedAttention<'_>) -> Result<()> {
    let pages = Pages::of(&args.kv);
    let dim = pages.head_dim;
    assert_eq!(args.heads % pages.kv_heads, 0, "query heads per kv head");
    assert_eq!(args.qkv.cols(), (args.heads + 2 * pages.kv_heads) * dim, "columns of qkv");
    assert_eq!((args.out.rows(), args.out.cols()), (args.qkv.rows(), args.heads * dim), "shape of the output");
    assert_eq!(
        (args.starts.rows(), args.tables.rows()),
        (args.context_lens.rows() + 1, args.context_lens.rows()),
        "sequences"
    );
    assert!(args.window != Some(0), "a window of no keys");
    assert_halves("attention", &[args.out, args.qkv]);
    let tables = s.paged.tables(s, args, &pages)?;
    if args.qkv.rows() == 0 {
        return Ok(());
    }
    let op = Attention { s, args, pages, tables: &tables };
    match if op.fits() { op.form()? } else { Form::None } {
        Form::Packed => op.packed(op.queries()?, Mode::Run),
        Form::Equal => op.equal(op.queries()?),
        Form::None => on_host::paged_attention(s, args, &pages, &tables),
    }
}

struct Attention<'a> {
    s: &'a AscendStream,
    args: &'a PagedAttention<'a>,
    pages: Pages,
    tables: &'a Tables,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Run,
    Plan,
}

/// One call of the operator.
struct Call<'a> {
    layout: &'static CStr,
    query: View<'a>,
    out: View<'a>,
    table: View<'a>,
    /// Of the queries, where the form wants them.
    lengths: Option<Vec<i64>>,
    contexts: Vec<i64>,
    causal: bool,
}

impl Attention<'_> {
    fn fits(&self) -> bool {
        let Attention { args, pages, tables, .. } = self;
        let longest = tables.contexts.iter().max().copied().unwrap_or(0);
        let sees_all = args.window.is_none_or(|window| longest <= window as usize);
        let shape = pages.block_size == BLOCK
            && pages.head_dim <= MAX_DIM
            && pages.head_dim.is_multiple_of(16)
            && args.heads / pages.kv_heads <= MAX_RATIO
            && pages.kv_heads * pages.head_dim <= MAX_ROW
            && tables.contexts.len() <= MAX_SEQUENCES;
        let aligned = [args.qkv, args.out, args.kv.pool].into_iter().all(is_aligned);
        shape && sees_all && aligned && args.soft_cap.is_none() && pages.dtype == args.qkv.dtype()
    }

    /// Asks the operator the first time that a shape comes: documentation and versions differ in what it takes.
    fn form(&self) -> Result<Form> {
        let Attention { s, args, pages, .. } = self;
        if s.abi().attention.is_none() {
            return Ok(Form::None);
        }
        let key = (code(pages.dtype).0, args.heads, pages.kv_heads, pages.head_dim);
        let forms = &s.device.mask.forms;
        if let Some(known) = forms.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(*known);
        }
        // Any memory does for queries that are not read.
        let [queries] = s.scratch([args.out.bytes()])?;
        let packed = self.packed(queries, Mode::Plan);
        let form = match &packed {
            Ok(()) => Form::Packed,
            Err(_) => match self.equal_call(queries, 0..1).and_then(|call| self.call(&call, Mode::Plan)) {
                Ok(()) => Form::Equal,
                Err(_) => Form::None,
            },
        };
        log::info!("attention of {} heads over {} of {} in {}: {form:?}", key.1, key.2, key.3, pages.dtype);
        if let Err(e) = packed {
            log::warn!("attention over packed rows is refused, so it takes form {form:?}: {e}");
            let mut refused = s.device.mask.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.push(format!("{} heads over {} of {}: {e}", key.1, key.2, key.3));
        }
        forms.lock().unwrap_or_else(PoisonError::into_inner).insert(key, form);
        Ok(form)
    }

    /// The queries of all tokens, one behind the other.
    fn queries(&self) -> Result<u64> {
        let Attention { s, args, pages, .. } = self;
        let (dtype, dim) = (code(args.qkv.dtype()), pages.head_dim);
        let [queries] = s.scratch([args.out.bytes()])?;
        let dims = [args.qkv.rows(), args.heads, dim];
        let from = heads(s, args.qkv, 0, (args.heads, dim))?;
        cast(s, &View::new(s, queries, dtype, &dims)?, &from, dtype)?;
        Ok(queries)
    }

    fn packed(&self, queries: u64, mode: Mode) -> Result<()> {
        let Attention { s, args, pages, tables } = self;
        let (dtype, dims) = (code(pages.dtype), [args.qkv.rows(), args.heads, pages.head_dim]);
        let call = Call {
            layout: PACKED,
            query: View::new(s, queries, dtype, &dims)?,
            out: View::new(s, args.out.addr(), dtype, &dims)?,
            table: View::new(s, tables.addr, DataType::INT32, &[tables.contexts.len(), tables.width])?,
            lengths: Some(tables.starts[1..].iter().map(|end| *end as i64).collect()),
            contexts: tables.contexts.iter().map(|n| *n as i64).collect(),
            causal: true,
        };
        self.call(&call, mode)
    }

    /// Neighbours of one token each in one call, others alone.
    fn equal(&self, queries: u64) -> Result<()> {
        let starts = &self.tables.starts;
        let single = |sequence: usize| starts[sequence + 1] - starts[sequence] == 1;
        let (mut from, all) = (0, self.tables.contexts.len());
        while from < all {
            let mut to = from + 1;
            while single(from) && to < all && single(to) {
                to += 1;
            }
            if starts[to] > starts[from] {
                self.call(&self.equal_call(queries, from..to)?, Mode::Run)?;
            }
            from = to;
        }
        Ok(())
    }

    /// Sequences of equally many tokens: several of one, or one.
    fn equal_call(&self, queries: u64, sequences: std::ops::Range<usize>) -> Result<Call<'_>> {
        let Attention { s, args, pages, tables } = self;
        let (first, n) = (sequences.start, sequences.len());
        let tokens = tables.starts[sequences.end] - tables.starts[first];
        let (each, row) = (tokens / n, args.heads * pages.head_dim * pages.dtype.size());
        let (dtype, dims) = (code(pages.dtype), [n, each, args.heads, pages.head_dim]);
        let skip = (tables.starts[first] * row) as u64;
        let table = tables.addr + (4 * first * tables.width) as u64;
        Ok(Call {
            layout: EQUAL,
            query: View::new(s, queries + skip, dtype, &dims)?,
            out: View::new(s, args.out.addr() + skip, dtype, &dims)?,
            table: View::new(s, table, DataType::INT32, &[n, tables.width])?,
            lengths: (each > 1).then(|| vec![each as i64]),
            contexts: tables.contexts[sequences].iter().map(|n| *n as i64).collect(),
            causal: each > 1,
        })
    }

    fn call(&self, call: &Call<'_>, mode: Mode) -> Result<()> {
        let Attention { s, args, pages, .. } = self;
        let Some(op) = &s.abi().attention else { return Ok(()) };
        let row = [pages.kv_heads * pages.head_dim];
        let (key, value) = (List::of(pages.view(s, 0, &row)?)?, List::of(pages.view(s, 1, &row)?)?);
        let mask = View::new(s, s.device.mask.memory.addr(), DataType::INT8, &[MASK, MASK])?;
        let mask = if call.causal { mask.raw().cast_const() } else { none() };
        let lengths = call.lengths.as_ref().map(|lengths| Ints::new(s, lengths)).transpose()?;
        let lengths = lengths.as_ref().map_or(null(), Ints::raw);
        let contexts = Ints::new(s, &call.contexts)?;
        let (heads, kv_heads, scale) = (args.heads as i64, pages.kv_heads as i64, f64::from(args.scale));
        let (layout, sparse, block) =
            (call.layout.as_ptr().cast_mut(), if call.causal { CAUSAL } else { ALL }, BLOCK as i64);
        let (query, table, out, no) = (call.query.raw(), call.table.raw(), call.out.raw(), none());
        macro_rules! plan {
            () => {
                // SAFETY: described tensors, lists, arrays and a static string that outlive the call.
                |plan, bytes, executor| unsafe {
                    #[rustfmt::skip]
                    let status = plan(
                        query, key.raw(), value.raw(), no, mask, lengths, contexts.raw(), no, no, no, no, no, no, no, table,
                        no, no, no, no, no, no, no, no, null(), no, no, no, heads, scale, UNBOUNDED, UNBOUNDED, layout,
                        kv_heads, sparse, 0, block, 0, false, 0, 0, out, no, bytes, executor,
                    );
                    status
                }
            };
        }
        match mode {
            Mode::Run => s.call(op, plan!()),
            Mode::Plan => s.try_plan(op, plan!()),
        }
    }
}
