//! Products. Weights stay `[N, K]` and are described as their transposes. The operator's result has the dtype of what goes in, so
//! logits are numbers of activations that are widened.

use super::super::abi::Int8;
use super::super::memory::AscendMatrix;
use super::super::operands::{One, View, code};
use super::super::stream::AscendStream;
use super::{assert_halves, cast, shape};
use crate::base::{DType, Error, Result};
use crate::hal::ops::Linear;
use crate::hal::{Matrix, MatrixStorage, Tensor};

/// Keeps the product in the dtype of its operands, with sums in F32.
const KEEP_DTYPE: Int8 = Int8(0);

/// The matrix of a product whose shapes fit.
fn checked<'a>(out: &Tensor, x: &Tensor, w: &'a Matrix, bias: Option<&Tensor>) -> Result<&'a Tensor> {
    let matrix = AscendMatrix::of(w);
    assert_eq!(shape(out), (x.rows(), matrix.rows()), "output of linear");
    assert_eq!(x.cols(), matrix.cols(), "columns of the input of linear");
    assert_halves("the input of linear", &[x]);
    assert!(out.dtype() == x.dtype() || out.dtype() == DType::F32, "dtype of the output of linear");
    if let Some(bias) = bias {
        assert_eq!((shape(bias), bias.dtype()), ((1, matrix.rows()), DType::F32), "bias of linear");
    }
    if matrix.dtype() != x.dtype() {
        return Err(Error::unsupported(format!(
            "a weight matrix of {} under activations of {}; on Ascend all weights of a model have one dtype, float16 or bfloat16",
            matrix.dtype(),
            x.dtype()
        )));
    }
    matrix.tensor().ok_or_else(|| Error::internal("a product with a matrix in host memory"))
}

/// The product itself as a plan of the operator, for [`AscendStream::call`] or [`AscendStream::try_plan`].
struct Product<'a> {
    x: View<'a>,
    w: View<'a>,
    out: View<'a>,
}

impl<'a> Product<'a> {
    fn new(s: &'a AscendStream, out: u64, x: &Tensor, w: &Tensor) -> Result<Self> {
        let ((m, k), n, dtype) = (shape(x), w.rows(), code(x.dtype()));
        Ok(Self {
            x: View::of(s, x)?,
            w: View::strided(s, (w.addr(), dtype), &[k, n], &[1, k])?,
            out: View::new(s, out, dtype, &[m, n])?,
        })
    }

    fn run(&self, s: &AscendStream) -> Result<()> {
        let (x, w, out) = (self.x.raw(), self.w.raw(), self.out.raw());
        // SAFETY: described tensors that outlive the call.
        s.call(&s.abi().matmul, |plan, bytes, executor| unsafe { plan(x, w, out, KEEP_DTYPE, bytes, executor) })
    }

    fn try_plan(&self, s: &AscendStream) -> Result<()> {
        let (x, w, out) = (self.x.raw(), self.w.raw(), self.out.raw());
        // SAFETY: as above; nothing of it runs.
        s.try_plan(&s.abi().matmul, |plan, bytes, executor| unsafe { plan(x, w, out, KEEP_DTYPE, bytes, executor) })
    }
}

/// Bytes of the product where it is not the output, and of the bias in its dtype.
fn scratch_bytes(out: &Tensor, x: &Tensor, bias: Option<&Tensor>) -> [usize; 2] {
    let half = x.dtype().size();
    let direct = out.dtype() == x.dtype();
    let (product, bias) = (out.rows() * out.cols() * half, bias.map_or(0, |bias| bias.cols() * half));
    if direct { [0, bias] } else { [product, 0] }
}

pub(crate) fn linear(
    s: &AscendStream,
    (out, x): (&Tensor, &Tensor),
    (w, bias): (&Matrix, Option<&Tensor>),
) -> Result<()> {
    let w = checked(out, x, w, bias)?;
    if x.rows() == 0 {
        return Ok(());
    }
    let direct = out.dtype() == x.dtype();
    let [product, narrow] = s.scratch(scratch_bytes(out, x, bias))?;
    let product = Product::new(s, if direct { out.addr() } else { product }, x, w)?;
    product.run(s)?;
    let whole = View::of(s, out)?;
    if !direct {
        cast(s, &whole, &product.out, code(out.dtype()))?;
    }
    let Some(bias) = bias else { return Ok(()) };
    let wide = View::flat(s, bias)?;
    if !direct {
        return add(s, &whole, &wide);
    }
    let bias = View::new(s, narrow, code(out.dtype()), &[bias.cols()])?;
    cast(s, &bias, &wide, code(out.dtype()))?;
    add(s, &whole, &bias)
}

/// `x += y`; `y` may have one row for all.
pub(super) fn add(s: &AscendStream, x: &View<'_>, y: &View<'_>) -> Result<()> {
    let one = One::new(s)?;
    let (to, y, one) = (x.raw(), y.raw(), one.raw());
    // SAFETY: described tensors and a scalar that outlive the call; the operator may write what it reads, element by element.
    s.call(&s.abi().add, |plan, bytes, executor| unsafe { plan(to, y, one, to, bytes, executor) })
}

/// Makes room for what the largest products want.
pub(crate) fn prepare(s: &AscendStream, products: &[Linear<'_>]) -> Result<()> {
    for Linear { out, x, w, bias, .. } in products {
        let w = checked(out, x, w, *bias)?;
        let [product, _] = s.scratch(scratch_bytes(out, x, *bias))?;
        let direct = out.dtype() == x.dtype();
        Product::new(s, if direct { out.addr() } else { product }, x, w)?.try_plan(s)?;
    }
    Ok(())
}
