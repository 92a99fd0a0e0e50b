"""The FLOP counter against closed forms and published counts."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import sparse

from boneage_jax.errors import InputError
from boneage_jax.models import convolution, convolution_native, depthwise_native, depthwise_shift
from boneage_jax.models.efficientnet import VARIANTS
from boneage_jax.models.flops import MARKED_CONVOLUTIONS, MARKED_DEPTHWISE, count_flops
from boneage_jax.models.registry import create_model


def test_a_product_a_convolution_and_a_scan():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert count_flops(jnp.dot, a, b) == 2 * 3 * 5 * 7
    assert count_flops(jax.jit(lambda a, b: jnp.dot(a, b) + 1), a, b) == 2 * 3 * 5 * 7

    image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))
    conv = functools.partial(
        lax.conv_general_dilated,
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert count_flops(conv, image, kernel) == 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)

    def loop(x, w):
        return lax.scan(lambda c, _: (c @ w, None), x, None, length=11)[0]

    assert count_flops(loop, jnp.ones((2, 4)), jnp.ones((4, 4))) == 11 * 2 * 2 * 4 * 4


def test_the_dearest_branch_counts_and_an_endless_loop_is_refused():
    a = jnp.ones((4, 4))

    def branches(a):
        return lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a, a)

    assert count_flops(branches, a) == 2 * 2 * 4**3
    assert count_flops(lambda a: lax.while_loop(lambda a: a[0, 0] < 9, lambda a: a + 1, a), a) == 0
    with pytest.raises(ValueError, match="while"):
        count_flops(lambda a: lax.while_loop(lambda a: a[0, 0] < 9, lambda a: a @ a, a), a)


def _ragged(a, b, groups):
    return lax.ragged_dot(a, b, groups)


def _local(x, kernel):
    shape = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated_local(x, kernel, (1, 1), "VALID", (3, 3), (1, 1), (1, 1), shape)


@pytest.mark.parametrize(
    ("fn", "shapes", "flops"),
    [
        # Each row meets the matrix of its own group; the gradients cost two more.
        (_ragged, [(6, 4), (2, 4, 5), (2,)], 2 * 6 * 4 * 5),
        (
            lambda a, b, g: jax.grad(lambda a, b: _ragged(a, b, g).sum(), argnums=(0, 1))(a, b),
            [(6, 4), (2, 4, 5), (2,)],
            3 * 2 * 6 * 4 * 5,
        ),
        # The windows are cut out by a convolution, then multiplied.
        (_local, [(2, 8, 8, 3), (6, 6, 27, 4)], 2 * (2 * 36 * 27) * 9 + 2 * (2 * 36 * 4) * 27),
        (jnp.fft.fft, [(3, 16)], 3 * 5 * 16 * 4),
        (jnp.fft.rfft2, [(2, 8, 8)], 2 * 2.5 * 64 * 6),
        (jnp.linalg.cholesky, [(6, 6)], 6**3 / 3),
        (jnp.linalg.solve, [(3, 3), (3,)], 2 * 3**3 / 3 + 2 * 3**2),
        (lambda a, b: lax.complex(a, a) @ lax.complex(b, b), [(3, 4), (4, 5)], 4 * 2 * 3 * 4 * 5),
        (lambda a: jax.debug.print("{}", a), [(3,)], 0),
    ],
)
def test_other_products_and_transforms_count(fn, shapes, flops):
    arrays = [jnp.ones(shape, jnp.int32 if shape == (2,) else jnp.float32) for shape in shapes]
    assert count_flops(fn, *arrays) == flops


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (lambda a: jax.pure_callback(lambda a: a, a, a), "pure_callback"),
        (lambda a: jnp.linalg.svd(a)[0], "svd"),
        (jnp.linalg.qr, "qr"),
        (lambda a: jax.lax.linalg.symmetric_product(a, a), "symmetric_product"),
        (lambda a: jax.lax.linalg.tridiagonal_solve(a[0], a[1], a[2], a), "tridiagonal_solve"),
        (lambda a: sparse.BCOO.fromdense(a, nse=9) @ a, "bcoo_dot_general"),
        (lambda a: sparse.CSR.fromdense(a, nse=9) @ a, "csr_matmat"),
    ],
)
def test_work_that_no_jaxpr_shows_is_refused(fn, name):
    with pytest.raises(InputError, match=f"the work of {name} cannot be counted"):
        count_flops(fn, jnp.ones((3, 3)))


def test_values_that_are_no_arrays_are_static():
    def fn(x, times, *, train, mode="plain"):
        for _ in range(times):
            x = x @ x if train and mode == "plain" else x
        return x

    x = jnp.ones((3, 3))
    assert count_flops(fn, x, 2, train=True) == 2 * 54
    assert count_flops(fn, x, 2, train=False) == count_flops(fn, x, 2, train=True, mode="no") == 0
    assert count_flops(lambda tree: tree["a"] @ tree["a"], {"a": x, "b": "text", "c": None}) == 54


@pytest.mark.parametrize("name", [*MARKED_CONVOLUTIONS, *MARKED_DEPTHWISE])
def test_a_function_of_the_users_with_a_name_of_ours_is_counted_by_its_content(name):
    def product(x):
        return x @ x

    product.__name__ = name
    assert count_flops(jax.jit(product), jnp.ones((3, 3))) == 54


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("implementation", ["lax", "shift"])
def test_depthwise_layers_count_the_same_however_they_run(stride, implementation):
    from boneage_jax.models.depthwise import depthwise_conv

    x, kernel = jnp.ones((2, 12, 12, 3)), jnp.ones((5, 5, 1, 3))

    def forward(x, kernel):
        return depthwise_conv(x, kernel, stride=stride, implementation=implementation).sum()

    out = 2 * (12 // stride) ** 2 * 3
    assert count_flops(forward, x, kernel) == 2 * 25 * out
    several = jax.vmap(forward, (0, None))
    assert count_flops(several, jnp.ones((4, *x.shape)), kernel) == 4 * 2 * 25 * out
    both = count_flops(jax.grad(forward, argnums=(0, 1)), x, kernel)
    assert both == 3 * 2 * 25 * out


def test_a_transposed_convolution_costs_what_the_convolution_costs():
    x, kernel = jnp.ones((2, 5, 5, 4)), jnp.ones((3, 3, 4, 6))

    def up(x, kernel):
        return lax.conv_transpose(x, kernel, (2, 2), "SAME").sum()

    forward = 2 * (2 * 5 * 5 * 4) * (3 * 3 * 6)  # each input value meets each kernel value
    assert count_flops(up, x, kernel) == forward
    assert count_flops(jax.grad(up, argnums=0), x, kernel) == 2 * forward


def test_all_devices_and_rematerialised_layers_count():
    a = jnp.ones((4, 8, 8))
    product = 2 * 8**3
    assert count_flops(jax.pmap(lambda a: a @ a), a) == 4 * product

    def loss(a):
        return jax.checkpoint(lambda a: jnp.sin(a @ a))(a).sum()

    # Forward, forward again, and two products of the backward pass.
    assert count_flops(jax.grad(loss), a[0]) == 4 * product


@pytest.mark.parametrize(
    ("name", "side", "giga"),
    [
        ("efficientnet_b4", 256, 3.921),
        ("efficientnet_b4", 380, 8.784),
        ("efficientnet_lite0", 256, 1.003),
    ],
)
def test_networks_cost_what_torch_counts(name, side, giga):
    """Forward counts of torch's FlopCounterMode on timm's networks."""
    model = create_model(name, num_classes=1000)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    assert count_flops(model.apply, variables, images) == pytest.approx(giga * 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("number", "giga"), list(enumerate([0.39, 0.70, 1.0, 1.8, 4.2, 9.9, 19, 37]))
)
def test_networks_cost_what_their_paper_says(number, giga):
    """Multiply-adds of Tan & Le 2019, table 2; published with two digits."""
    name = f"efficientnet_b{number}"
    side = VARIANTS[name].resolution
    model = create_model(name, num_classes=1000)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    counted = count_flops(model.apply, variables, images) / 2
    assert counted == pytest.approx(giga * 1e9, rel=0.05)


def test_a_training_step_costs_three_forward_passes():
    model = create_model("efficientnet_lite0", num_classes=10)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)

    def loss(params, stats, x):
        return model.apply({"params": params, "batch_stats": stats}, x).sum()

    args = (variables["params"], variables["batch_stats"], images)
    # The first layer needs no input gradient: slightly below three.
    step = count_flops(jax.grad(loss), *args)
    assert 2.8 < step / count_flops(loss, *args) < 3.0
    for implementation in ("lax", "shift", "fused"):
        model = create_model("efficientnet_lite0", num_classes=10, depthwise=implementation)
        assert count_flops(jax.grad(loss), *args) == step


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (depthwise_shift, [name for name in MARKED_DEPTHWISE if "_native_" not in name]),
        (depthwise_native, [name for name in MARKED_DEPTHWISE if "_native_" in name]),
        (convolution, [name for name in MARKED_CONVOLUTIONS if "native_" not in name]),
        (convolution_native, [name for name in MARKED_CONVOLUTIONS if "native_" in name]),
    ],
)
def test_functions_that_are_counted_by_name_have_these_names(module, names):
    """A renamed function would be counted by the products inside it, silently."""
    for name in names:
        function = getattr(module, name)
        assert function.__name__ == name and hasattr(function, "lower"), "a jitted function"
