"""Which inputs contain file names: core nodes are listed, other nodes are recognised by names and /object_info."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_core.comfyui.file_inputs import FileUse, declared_input, file_use

UPLOAD = [["a.png"], {"image_upload": True}]


@pytest.mark.parametrize(
    ("class_type", "input_name", "use"),
    [
        ("LoadImage", "image", FileUse.LOADS),
        ("LoadImageMask", "image", FileUse.LOADS),
        ("LoadImageMask", "channel", FileUse.LOADS_MODEL),
        ("LoadImageOutput", "image", FileUse.LOADS),
        ("LoadLatent", "latent", FileUse.LOADS),
        ("LoadAudio", "audio", FileUse.LOADS),
        ("RecordAudio", "audio", FileUse.LOADS),
        ("LoadVideo", "file", FileUse.LOADS),
        ("Load3D", "model_file", FileUse.LOADS),
        ("Load3D", "image", FileUse.LOADS),
        ("WebcamCapture", "image", FileUse.LOADS),
        ("Painter", "mask", FileUse.LOADS),
        ("LoadImageSetFromFolderNode", "folder", FileUse.LOADS_FOLDER),
        ("LoadImageDataSetFromFolder", "folder", FileUse.LOADS_FOLDER),
        ("LoadTrainingDataset", "folder_name", FileUse.LOADS_FOLDER),
        ("UNETLoader", "unet_name", FileUse.LOADS_MODEL),
        ("DiffusersLoader", "model_path", FileUse.LOADS_MODEL),
        ("AudioEncoderLoader", "audio_encoder_name", FileUse.LOADS_MODEL),
        ("SaveImage", "filename_prefix", FileUse.WRITES),
        ("SaveLoRANode", "prefix", FileUse.WRITES),
        ("SaveTrainingDataset", "folder_name", FileUse.WRITES),
        ("LossGraphNode", "filename_prefix", FileUse.WRITES),
        ("VHS_LoadVideoPath", "video", FileUse.LOADS),
        ("VHS_LoadImagesPath", "directory", FileUse.LOADS_FOLDER),
        ("Image Load", "image_path", FileUse.LOADS),
        ("LoadImagesFromDir //Inspire", "directory", FileUse.LOADS_FOLDER),
        ("ImageFromPath", "imagePath", FileUse.LOADS),
        ("Text Load Line From File", "file_path", FileUse.LOADS),
        ("CropImage", "options.mask_path", FileUse.LOADS),
        ("Image Save", "output_path", FileUse.WRITES),
        ("Image Saver", "filename", FileUse.WRITES),
        ("Image Saver", "path", FileUse.WRITES),
        ("WriteText", "destination", FileUse.WRITES),
        ("ImageExport", "output_root", FileUse.WRITES),
        ("SaveMesh", "name", FileUse.WRITES),
        ("SaveText", "output_text", None),
        ("SaveMesh", "output_format", None),
        ("Image Save", "filename_delimiter", None),
        ("CLIPTextEncode", "text", None),
        ("LoraTagLoader", "text", None),
        ("KSampler", "latent_image", None),
        ("Preview3D", "model_file", None),
        ("ImageScale", "image", None),
        ("PrimitiveString", "value", None),
    ],
)
def test_how_a_node_uses_the_file_of_an_input(class_type: str, input_name: str, use: FileUse | None) -> None:
    """The use of a file is listed for core nodes, and derived from words in class and input names for other nodes."""
    assert file_use(class_type, input_name) is use


@pytest.mark.parametrize(
    "declared",
    [
        UPLOAD,
        ["COMBO", {"options": [], "video_upload": True}],
        ["STRING", {"file_upload": True}],
        ["COMBO", {"remote": {"route": "/internal/files/output"}}],
    ],
)
def test_an_upload_in_object_info_loads_a_file(declared: Any) -> None:  # noqa: ANN401 - any JSON value
    """An input that /object_info declares as an upload loads a file, whatever the names of class and input."""
    assert file_use("Sketchpad", "canvas") is None
    assert file_use("Sketchpad", "canvas", declared) is FileUse.LOADS


def test_a_declaration_is_found_in_both_groups_of_inputs() -> None:
    """Required and optional inputs are searched. An input without a declaration has none."""
    node_type = {"input": {"required": {"image": UPLOAD}, "optional": {"mask": ["MASK", {}]}}}
    assert declared_input(node_type, "image") == UPLOAD
    assert declared_input(node_type, "mask") == ["MASK", {}]
    assert declared_input(node_type, "no") is None
    assert declared_input({}, "image") is None
