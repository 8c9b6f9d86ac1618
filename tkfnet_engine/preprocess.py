"""Image bytes -> uint8 RGB face crop. The only decode and the only resize of the project.

Policy, the same for every caller; Pillow does the decoding:

- Formats: JPEG, PNG, WebP, BMP, told by content and never by name. Animations give their first frame.
- A picture above `MAX_PIXELS` or `MAX_SIDE` is refused from its header, before any pixel is decoded.
- A picture that ends early is refused: a half-grey face still gets a label, and a wrong one.
- EXIF orientation is applied, all eight values. A damaged or absent tag means upright.
- Transparency is blended over black, the colour aligned crops are padded with.
- 16-bit samples keep their high byte. CMYK follows Adobe's inverted convention. ICC profiles are ignored:
  the network was trained on pixel values as stored.
"""

from __future__ import annotations

import io
import operator
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from .atomic import open_regular
from .errors import ImageError, UsageError
from .spec import INPUT_SIZE

MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384
# A 50-megapixel picture stored raw with alpha is 200 MB; nothing longer is worth reading.
MAX_BYTES = 256 * 2**20
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

_FOREIGN = {
    (0, b"II*\0"): "TIFF", (0, b"MM\0*"): "TIFF", (0, b"GIF8"): "GIF", (0, b"%PDF"): "PDF",
    (4, b"ftyp"): "HEIC, AVIF or video", (0, b"<"): "HTML or XML, perhaps a saved error page",
}  # fmt: skip
_TURN = Image.Transpose
_TURN_FROM_ORIENTATION = {
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90,
}  # fmt: skip


def decode_image(source: str | os.PathLike | bytes | BinaryIO) -> np.ndarray:
    """Decodes one picture: uint8 [H, W, 3] RGB, C-contiguous, upright. The policy is in the module's docstring.

    source: a path, the file's bytes, or a binary stream, which is read from its current position to its end.
    Raises `ImageError` that names the source ("<bytes>" for bytes), what was found and what to do.
    """
    name, data = _read(source)
    try:
        with _truncation_refused(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"its header says {width} x {height} pixels")
            image.load()
            turn, rgb = _turn(image), _rgb_from_mode(image)
            return np.array(rgb if turn is None else rgb.transpose(turn))
    except UnidentifiedImageError:
        found = next((what for (at, magic), what in _FOREIGN.items() if data.startswith(magic, at)), None)
        found = f"not an image this package reads: {found or 'it starts with ' + data[:8].hex(' ')}"
        todo = f"expected a sound {', '.join(FORMATS)}, whatever the file's name; convert or copy it again"
    except Image.DecompressionBombError as error:
        found, todo = str(error).rstrip("."), f"expected at most {MAX_PIXELS:,} and {MAX_SIDE:,} a side; shrink it"
    except MemoryError:
        raise
    # Damaged bytes make Pillow raise far more than OSError: struct.error, SyntaxError, KeyError, zlib.error ...
    except Exception as error:
        found, todo = f"damaged or truncated ({error or type(error).__name__})", "copy it or download it again"
    raise ImageError(f"{name}: {found}; {todo}")


def crop_box(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Cuts `box` = (X, Y, W, H), in pixels from the top left, out of uint8 [H, W, 3]; uint8 [box H, box W, 3].

    A copy, C-contiguous. Raises `ImageError` where the box is not inside the image or is empty.
    """
    image = check_crop(image)
    height, width = image.shape[:2]
    try:
        x, y, w, h = (operator.index(v) for v in box)
        inside = x >= 0 and y >= 0 and w >= 1 and h >= 1 and x + w <= width and y + h <= height
    except (TypeError, ValueError):
        inside = False
    if not inside:
        raise ImageError(
            f"box: got {box!r}, expected whole numbers X,Y,W,H, not empty and inside the {width} x {height} pixels; "
            "clip the box, and note that W,H is a size and not the lower right corner"
        )
    return image[y : y + h, x : x + w].copy()


def resize_crop(image: np.ndarray, size: int = INPUT_SIZE) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [size, size, 3], bilinear, averaging over all covered pixels when it shrinks.

    An image that is not square is stretched, so cut square boxes. No copy where the size is right already.
    Raises `ImageError` as `check_crop` does, `UsageError` for a size outside 1 to `MAX_SIDE`.
    """
    image, size = check_crop(image), _checked_size(size)
    if image.shape[:2] == (size, size):
        return image
    # No reducing_gap: it trades exactness for speed, and no other runtime would reproduce it.
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def check_crop(image: Any) -> np.ndarray:
    """The caller's array as C-contiguous uint8 [H, W, 3], H and W at least 1; copied only if its strides require it.

    The channel order cannot be seen in an array and is taken as RGB. Raises `ImageError` that says what was
    received and the likely fix.
    """
    is_array = isinstance(image, np.ndarray)
    if not is_array or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f"{image.dtype} {list(image.shape)}" if is_array else type(image).__name__
        raise ImageError(f"image: got {found}, expected an array uint8 [H, W, 3] in RGB order; {_hint(image)}")
    return np.ascontiguousarray(image)


def stack_crops(images: Sequence[np.ndarray] | np.ndarray, size: int = INPUT_SIZE) -> np.ndarray:
    """Crops of any size, a list of [H, W, 3] or an array [N, H, W, 3], as one uint8 [N, size, size, 3].

    No crops give [0, size, size, 3]; an array that fits already is returned without a copy. Raises
    `ImageError` that names the crop, `UsageError` for the size.
    """
    size = _checked_size(size)
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (size, size, 3):
        return np.ascontiguousarray(images)
    one_crop = isinstance(images, np.ndarray) and images.ndim != 4 and images.size
    if one_crop or isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        found = f"one array {list(images.shape)}" if one_crop else type(images).__name__
        raise ImageError(f"images: got {found}, expected [N, H, W, 3] or a list of crops; put a single crop in a list")
    crops = []
    for number, image in enumerate(images):
        try:
            crops.append(resize_crop(image, size))
        except ImageError as error:
            raise ImageError(f"crop {number} (counted from 0): {error}") from None
    return np.stack(crops) if crops else np.empty((0, size, size, 3), np.uint8)


def _read(source: Any) -> tuple[str, bytes]:
    """(name for messages, content) of a path, bytes or stream."""
    name = os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "<bytes>")
    # One line of printable text, whatever the file is called.
    name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name)[:300])
    data = bytearray()
    try:
        with _opened(source) as stream:
            # A raw stream may return less than is asked for, and a read of MAX_BYTES would allocate them at once.
            while len(data) <= MAX_BYTES and (part := stream.read(2**20)):
                data += part
    except (OSError, TypeError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        found = "no such file" if missing else f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ImageError(f"{name}: {found}; expected an image file, or one open in mode 'rb'") from None
    if not data:
        raise ImageError(f"{name}: empty, expected an image file; copy it again, or rewind the stream with seek(0)")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: more than {MAX_BYTES:,} bytes, the most that is read; shrink the image")
    return name, bytes(data)


def _opened(source: Any) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, (str, os.PathLike)):
        return open_regular(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(bytes(source))
    if callable(getattr(source, "read", None)):
        return nullcontext(source)
    raise TypeError(f"got {type(source).__name__}, expected a path, bytes or an open binary file")


_strict_lock, _strict_users, _was_lenient = threading.Lock(), 0, False


@contextmanager
def _truncation_refused() -> Iterator[None]:
    """Pins Pillow's process-wide LOAD_TRUNCATED_IMAGES to False while any thread is in here.

    Popular libraries switch it on at import; missing rows would then come back grey or black, without an error.
    """
    global _strict_users, _was_lenient
    with _strict_lock:
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            ImageFile.LOAD_TRUNCATED_IMAGES, _was_lenient = False, True
        _strict_users += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_users -= 1
            if _was_lenient and not _strict_users:
                ImageFile.LOAD_TRUNCATED_IMAGES, _was_lenient = True, False


def _rgb_from_mode(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as RGB."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    with_alpha, black = image.convert("RGBA"), Image.new("RGB", image.size)
    black.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return black


def _turn(image: Image.Image) -> Image.Transpose | None:
    # Not ImageOps.exif_transpose: it also writes the EXIF anew, which fails where an unrelated tag is damaged.
    try:
        return _TURN_FROM_ORIENTATION.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # whatever Pillow makes of a damaged tag: the picture is taken as upright
        return None


def _checked_size(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 1 <= size <= MAX_SIDE:
        raise UsageError(f"size: got {size!r}, expected a whole number of pixels from 1 to {MAX_SIDE:,}")
    return int(size)


def _hint(image: Any) -> str:
    """What the caller of `check_crop` probably meant."""
    if not isinstance(image, np.ndarray):
        return "decode_image reads a file; np.asarray(image.convert('RGB')) and tensor.cpu().numpy() give arrays"
    shape = image.shape
    if not image.size:
        return "the array is empty: check that the file was read and that the box lies inside the image"
    if len(shape) == 4:
        return "this is a batch: pass one image at a time, or the whole batch to stack_crops"
    if len(shape) == 2 or shape[2:] == (1,):
        return "a grey image becomes RGB with np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)"
    if shape[2:] == (4,):
        return "drop the alpha channel with image[..., :3], or for OpenCV's order image[..., 2::-1]"
    if shape[2:] != (3,):
        return "the last axis must hold R, G and B: from [3, H, W] it is image.transpose(1, 2, 0)"
    # fmin skips NaN without a warning.
    if image.dtype.kind == "f" and (low := np.fmin.reduce(image, axis=None)) < 0:
        return f"values from {low:.3g}: undo the normalisation, the engine applies its own"
    if image.dtype.kind in "bf" and np.fmax.reduce(image, axis=None) <= 1:
        return "values are 0..1: pass (image * 255.0).round().astype(np.uint8)"
    return "scale it to 0..255: image.round().clip(0, 255).astype(np.uint8)"
