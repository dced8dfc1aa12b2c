"""The builder's list of kernels, read from the lines of its log."""

from megrez.engines.tensorrt.kernels import Kernel, Tensor, read_kernels


def tensor(name: str, dims: str, dtype: str) -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{dims}], Strides: [1], StrideOrder: [0], Datatype: {dtype}, Format: Linear }}"
    )


def line(name: str, kind: str, inputs: str = "", constants: str = "", outputs: str = "", metadata: str = "") -> str:
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {inputs}], Constants: [ {constants}], Outputs: [ {outputs}], "
        f"TacticName: {name}_0xab, StreamId: 0, Metadata: {metadata}"
    )


LOG = [
    "Building an engine",
    line("of_another_list_myl0_1", "gemm"),
    "Layers:",
    line(
        "down_myl0_1",
        "gemm",
        tensor("x", "-1,16", "FP8"),
        f"{tensor('w', '16,8', 'FP8')}, {tensor('alpha', '1', 'Float')}",
        tensor("y", "-1,8", "Half"),
        "[ONNX Layer: model.layers.0.mlp.down_proj][ONNX Layer: node_dq]",
    ),
    line("_gemv_mha_v1_myl0_2", "kgen"),
    "Name: empty_myl1_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, "
    "Metadata: ",
    line("down [profile 1]_myl1_1", "gemm", tensor("x [profile 1]", "-1,-1,16", "Half")),
    "",
    "I/O Tensors:",
    " Name: x, IOMode: Input, DataType: Half",
]


def test_a_kernel_is_read_with_its_tensors_and_nodes() -> None:
    assert read_kernels(LOG)[0] == Kernel(
        name="down_myl0_1",
        kind="gemm",
        tactic="down_myl0_1_0xab",
        profile=0,
        inputs=(Tensor(name="x", dims=(-1, 16), dtype="FP8"),),
        constants=(Tensor(name="w", dims=(16, 8), dtype="FP8"), Tensor(name="alpha", dims=(1,), dtype="Float")),
        outputs=(Tensor(name="y", dims=(-1, 8), dtype="Half"),),
        nodes=("model.layers.0.mlp.down_proj", "node_dq"),
    )


def test_only_the_last_list_is_read() -> None:
    assert [kernel.name for kernel in read_kernels(LOG)][:1] == ["down_myl0_1"]
    assert len(read_kernels(LOG)) == 4


def test_kernels_compiled_together_belong_to_the_profile_that_one_of_them_names() -> None:
    assert [(kernel.name, kernel.profile) for kernel in read_kernels(LOG)] == [
        ("down_myl0_1", 0),
        ("_gemv_mha_v1_myl0_2", 0),
        ("empty_myl1_0", 1),
        ("down_myl1_1", 1),
    ]
    assert read_kernels(LOG)[3].inputs == (Tensor(name="x", dims=(-1, -1, 16), dtype="Half"),)


def test_without_a_list_there_are_no_kernels() -> None:
    assert read_kernels(LOG[:2]) == []
