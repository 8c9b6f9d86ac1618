"""Image bytes -> uint8 RGB face crop. The only decode and the only resize of the project.

Policy, the same for every caller:

- Formats: JPEG, PNG, WebP, BMP, told by content and never by name. Animations give their first frame.
- Size is read from the header and refused above `MAX_PIXELS` or `MAX_SIDE` before any pixel is decoded.
- A file that ends early is refused: a half-grey face still gets a label, and a wrong one.
- EXIF orientation is applied, all eight values. A damaged or absent tag means upright.
- Transparency is composited over black, the colour aligned crops are padded with. A picture without a
  single visible pixel is refused. A PNG's transparent colour key counts at 8 bits a channel only.
- 16-bit samples keep their high byte. CMYK follows Adobe's inverted convention. ICC profiles are ignored:
  the network was trained on pixel values as stored.

Only the parts of a file that carry pixels reach the decoder. That keeps Pillow's metadata parsers, their
warnings and their process-wide settings (`MAX_IMAGE_PIXELS`, `LOAD_TRUNCATED_IMAGES`) out of the result.
"""

from __future__ import annotations

import io
import operator
import os
import re
import stat
import struct
import types
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from .errors import ImageError, UsageError
from .spec import INPUT_SIZE

MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384
# A 50-megapixel picture stored raw with alpha is 200 MB; nothing longer is worth reading.
MAX_BYTES = 256 * 2**20
# Encoders write about ten scans; each one costs the decoder a pass over the whole picture.
MAX_SCANS = 100
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# A marker other than a restart (D0-D7), a repeated start (D8), a stuffed zero or padding.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FOREIGN = (
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"GIF8", "GIF"), (b"%PDF", "PDF"), (b"%!PS", "PostScript"),
    (b"PK\3\4", "ZIP"), (b"\x1f\x8b", "gzip"), (b"8BPS", "Photoshop"), (b"version https://git-lfs", "Git LFS"),
)  # fmt: skip


class _Refused(Exception):
    """What is wrong with the bytes; `decode_image` adds the name of their source."""


def decode_image(source: str | os.PathLike | bytes | BinaryIO) -> np.ndarray:
    """Decodes one picture: uint8 [H, W, 3] RGB, C-contiguous, upright. The policy is in the module's docstring.

    source: a path, the file's bytes, or a binary stream, which is read from its current position to its end.
    Raises `ImageError` that names the source ("<bytes>" for bytes), what was found and what to do.
    """
    name, data = _read(source)
    try:
        kind, scan = _recognised(data)
        size, exif, pixels_only = scan(data)
        image = _decoded(kind, pixels_only, size)
    except _Refused as reason:
        raise ImageError(f"{name}: {reason}") from None
    return np.ascontiguousarray(_upright(image, _orientation(exif)))


def crop_box(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Cuts `box` = (X, Y, W, H), in pixels from the top left, out of uint8 [H, W, 3]; uint8 [box H, box W, 3].

    A copy, C-contiguous. Raises `ImageError` where the box is not inside the image or is empty.
    """
    image = check_crop(image)
    height, width = image.shape[:2]
    try:
        x, y, w, h = (operator.index(v) for v in box)
    except (TypeError, ValueError):
        raise ImageError(f"box: got {box!r}, expected four whole numbers X,Y,W,H in pixels") from None
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise ImageError(
            f"box: got X,Y,W,H = {x},{y},{w},{h}, expected W and H of at least 1 inside the image, {width} x {height} "
            "pixels (width x height); clip the box, and note that W,H is a size and not the lower right corner"
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
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"image: got {type(image).__name__}, expected an array, uint8 [H, W, 3] in RGB order{_hint_type(image)}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(
            f"image: got {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3] in RGB order; {_hint_array(image)}"
        )
    return np.ascontiguousarray(image)


def stack_crops(images: Sequence[np.ndarray] | np.ndarray, size: int = INPUT_SIZE) -> np.ndarray:
    """Crops of any size, a list of [H, W, 3] or an array [N, H, W, 3], as one uint8 [N, size, size, 3].

    No crops give [0, size, size, 3]; an array that fits already is returned without a copy. Raises
    `ImageError` that names the crop, `UsageError` for the size.
    """
    size = _checked_size(size)
    if isinstance(images, np.ndarray):
        if images.dtype == np.uint8 and images.shape[1:] == (size, size, 3):
            return np.ascontiguousarray(images)
        if images.ndim != 4 and images.size:
            raise ImageError(
                f"images: got one array {images.dtype} {list(images.shape)}, expected [N, H, W, 3] or a list of "
                "crops; put a single crop in a list: [crop]"
            )
    elif isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        raise ImageError(
            f"images: got {type(images).__name__}, expected a list of arrays, each uint8 [H, W, 3]; see decode_image"
        )
    crops = []
    for number, image in enumerate(images):
        try:
            crops.append(resize_crop(image, size))
        except ImageError as error:
            raise ImageError(f"crop {number} (counted from 0): {error}") from None
    return np.stack(crops) if crops else np.empty((0, size, size, 3), np.uint8)


# Reading


def _read(source: Any) -> tuple[str, bytes]:
    """(name for messages, content) of a path, bytes or stream."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data = "<bytes>", bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        name, data = _printable(path), _read_path(path)
    elif callable(getattr(source, "read", None)):
        name = source.name if isinstance(getattr(source, "name", None), str) else "<stream>"
        name, data = _printable(name), _read_stream(name, source)
    else:
        raise ImageError(f"image source: got {type(source).__name__}, expected a path, bytes or an open binary file")
    if not data:
        todo = "rewind the stream with seek(0)" if hasattr(source, "read") else "copy it again"
        raise ImageError(f"{name}: empty (0 bytes), expected an image file ({', '.join(FORMATS)}); {todo}")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: more than {MAX_BYTES:,} bytes, the most that is read; shrink the image")
    return name, data


def _read_path(path: str) -> bytes:
    name = _printable(path)
    # Without O_NONBLOCK, opening a named pipe that nobody writes to would wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        with open(path, "rb", opener=lambda p, _: os.open(p, flags)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError(f"{name}: a pipe or a device, expected an image file; pass its bytes instead")
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file, expected an image file; check the path") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        if os.path.isdir(path):
            raise ImageError(f"{name}: a folder, expected an image file; name the files in it") from None
        why = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{name}: cannot be read ({why}); check the path and its permissions") from None


def _read_stream(name: str, source: BinaryIO) -> bytes:
    parts, length = [], 0
    try:
        # A raw stream may return less than was asked for, so only an empty answer is the end.
        while length <= MAX_BYTES and (part := source.read(MAX_BYTES + 1 - length)):
            if not isinstance(part, bytes):
                raise ImageError(f"{name}: read() gave {type(part).__name__}, expected bytes; open it with mode 'rb'")
            parts.append(part)
            length += len(part)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be read ({error}), expected an open binary file") from None
    return b"".join(parts)


def _printable(text: str) -> str:
    """One line of printable text, whatever a file is called."""
    text = text if len(text) <= 300 else text[:300] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# Scanning: each returns ((width, height), EXIF, what the decoder may see) and refuses an incomplete file


def _recognised(data: bytes):
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG", _scan_jpeg
    if data[:8] == _PNG_SIGNATURE:
        return "PNG", _scan_png
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP", _scan_webp
    if data[:2] == b"BM":
        return "BMP", _scan_bmp
    found = next((what for magic, what in _FOREIGN if data.startswith(magic)), "")
    if not found and data[4:8] == b"ftyp":
        found = "HEIC, AVIF or video"
    if not found and re.match(rb"(\xef\xbb\xbf)?\s*<", data):
        found = "HTML or XML text, perhaps a saved error page"
    raise _Refused(
        f"not an image this package reads: {found or 'it starts with ' + data[:8].hex(' ')}; expected "
        f"{', '.join(FORMATS)} by content, whatever the file's name; convert the picture to one of them"
    )


def _truncated(kind: str, data: bytes) -> _Refused:
    return _Refused(
        f"truncated {kind}: the picture does not end within its {len(data):,} bytes; copy or download it again"
    )


def _check_size(width: int, height: int) -> tuple[int, int]:
    if width < 1 or height < 1 or max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise _Refused(
            f"its header says {width} x {height} pixels, expected 1 to {MAX_SIDE:,} a side and at most {MAX_PIXELS:,} "
            "in all; shrink the picture, or cut out the face"
        )
    return width, height


def _scan_jpeg(data: bytes):
    kept: list[bytes | memoryview] = [data[:2]]
    size, exif, scans, start = None, b"", 0, 2
    view = memoryview(data)
    while found := _JPEG_MARKER.search(data, start):
        at, code = found.start(), data[found.start() + 1]
        kept.append(view[start:at])
        if code == 0xD9:
            if not size or not scans:
                raise _Refused("a JPEG without a picture in it; export it again")
            return size, exif, b"".join([*kept, view[at : at + 2]])
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        start = at + 2 + length
        if at + 4 > len(data) or start > len(data):
            break
        if length < 2:
            raise _Refused(f"damaged JPEG: a segment at byte {at} claims {length} bytes; copy or export it again")
        if code in _JPEG_FRAMES and not size:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9].ljust(4, b"\0"))
            size = _check_size(width, height)
        scans += code == 0xDA
        if scans > MAX_SCANS:
            raise _Refused(f"a JPEG of more than {MAX_SCANS} scans; export it again")
        if code == 0xE1 and not exif and data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 4 : start]
        # APP0 and APP14 decide how colours are stored; the other APPn and comments carry no pixels.
        if not (0xE1 <= code <= 0xED or code in (0xEF, 0xFE)):
            kept.append(view[at:start])
    raise _truncated("JPEG", data)


def _scan_png(data: bytes):
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise _truncated("PNG", data)
    width, height, depth, color = struct.unpack(">IIBB", data[16:26])
    size, exif, at = _check_size(width, height), b"", 8
    kept: list[bytes | memoryview] = [data[:8]]
    wanted = {b"IHDR", b"PLTE", b"IDAT", b"IEND"} | ({b"tRNS"} if depth == 8 or color == 3 else set())
    view = memoryview(data)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        chunk = data[at + 4 : at + 8]
        if chunk in wanted:
            if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise _Refused(f"damaged PNG: wrong checksum of its part at byte {at}; copy or download it again")
            kept.append(view[at:end])
            if chunk == b"IHDR":
                wanted.remove(chunk)
        elif chunk == b"eXIf":
            exif = data[at + 8 : end - 4]
        if chunk == b"IEND":
            return size, exif, b"".join(kept)
        at = end
    raise _truncated("PNG", data)


def _scan_webp(data: bytes):
    total = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < max(total, 30):
        raise _truncated("WebP", data)
    chunk, bits = data[12:16], int.from_bytes(data[21:25], "little")
    if chunk == b"VP8X":
        size = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    elif chunk == b"VP8L" and data[20] == 0x2F:
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        size = int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    else:
        raise _Refused("damaged WebP: no picture header where one must be; export it again")
    _check_size(*size)
    exif, at = b"", 12
    while at + 8 <= total:
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        if end > total:
            raise _truncated("WebP", data)
        if data[at : at + 4] == b"EXIF":
            exif = data[at + 8 : end]
        at = end + (end & 1)
    return size, exif, data[:total]


def _scan_bmp(data: bytes):
    if len(data) < 34:
        raise _truncated("BMP", data)
    offset, header = struct.unpack("<II", data[10:18])
    if header == 12:
        width, height, _, bits = struct.unpack("<HHHH", data[18:26])
        packing = 0
    else:
        width, height, _, bits, packing = struct.unpack("<iiHHI", data[18:34])
    size = _check_size(width, abs(height))
    if packing not in (0, 3, 6):
        raise _Refused(f"a compressed BMP (method {packing}), expected an uncompressed one; save it as PNG")
    if len(data) < (offset or 14 + header) + (width * bits + 31) // 32 * 4 * abs(height):
        raise _truncated("BMP", data)
    return size, b"", data


# Decoding


class _Pixels(io.BytesIO):
    """Bytes whose 30-byte header read comes back short, as a stream's may.

    Pillow's WebP reader checks a header it got whole against the process-wide MAX_IMAGE_PIXELS; `_check_size`
    has been stricter by then, and another library's setting must not decide what this one accepts.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(16 if size == 30 and self.tell() == 0 else size)


# The reader classes and not Image.open, which warns or refuses by the same process-wide setting.
_READERS = {
    "JPEG": (JpegImagePlugin.JpegImageFile, io.BytesIO),
    "PNG": (PngImagePlugin.PngImageFile, io.BytesIO),
    "WEBP": (WebPImagePlugin.WebPImageFile, _Pixels),
    "BMP": (BmpImagePlugin.BmpImageFile, io.BytesIO),
}


# Pillow's own load loop with its process-wide LOAD_TRUNCATED_IMAGES pinned off. Where another library has switched
# that on, damaged rows would come back black or grey; switching it off here would race with that library's threads.
_load = ImageFile.ImageFile.load
_load_strictly = types.FunctionType(_load.__code__, {**_load.__globals__, "LOAD_TRUNCATED_IMAGES": False}, "load")


def _decoded(kind: str, pixels_only: bytes, size: tuple[int, int]) -> np.ndarray:
    if kind == "WEBP" and not getattr(WebPImagePlugin, "SUPPORTED", True):
        raise _Refused("a WebP, which this build of Pillow cannot read; install Pillow's wheel, or convert it to PNG")
    reader, stream = _READERS[kind]
    try:
        with reader(stream(pixels_only)) as image:
            if image.size != size:
                raise _Refused(f"damaged {kind}: it states two sizes, {size} and {image.size}; export it again")
            # WebP's own load checks each frame itself before it enters the common loop.
            image.load() if kind == "WEBP" else _load_strictly(image)
            return _rgb_from_mode(image)
    except (_Refused, MemoryError):
        raise
    # Damaged bytes make Pillow raise far more than OSError: struct.error, SyntaxError, KeyError, zlib.error ...
    except Exception as error:
        what = f"{error}" or type(error).__name__
        raise _Refused(f"damaged {kind} that cannot be decoded ({what}); copy or export it again") from None


def _rgb_from_mode(image: Image.Image) -> np.ndarray:
    """A loaded image of any mode as uint8 [H, W, 3]."""
    mode = image.mode
    if mode.startswith("I"):
        high = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.stack([high] * 3, axis=-1)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        alpha = with_alpha.getchannel("A")
        if alpha.getextrema()[1] == 0:
            raise _Refused("every pixel is fully transparent, expected a visible face; export it without transparency")
        black = Image.new("RGB", image.size)
        black.paste(with_alpha, mask=alpha)
        return np.array(black)
    if mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        return np.array(image.convert("RGB"))
    raise _Refused(f"pixels of mode {mode!r}, which has no defined meaning here; save it as 8-bit RGB")


def _orientation(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where the tag is missing or damaged."""
    tiff = exif[6:] if exif[:6] == b"Exif\0\0" else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if not order or len(tiff) < 8:
        return 1
    (first,) = struct.unpack(order + "I", tiff[4:8])
    count = struct.unpack(order + "H", tiff[first : first + 2])[0] if first + 2 <= len(tiff) else 0
    for at in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, _, value = struct.unpack(order + "HHIH", tiff[at : at + 10])
        if tag == 0x0112:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes how the camera stored the rows: 2-4 flips and the half turn, 5-8 with rows and columns swapped."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    rows, columns = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    return image[::rows, ::columns]


# What the caller probably meant


def _checked_size(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 1 <= size <= MAX_SIDE:
        raise UsageError(f"size: got {size!r}, expected a whole number of pixels from 1 to {MAX_SIDE:,}")
    return int(size)


def _hint_type(image: Any) -> str:
    if isinstance(image, (str, bytes, os.PathLike)):
        return "; read a file with decode_image"
    if isinstance(image, Image.Image):
        return "; convert it with np.asarray(image.convert('RGB'))"
    if type(image).__module__.partition(".")[0] == "torch":
        return "; pass tensor.cpu().numpy(), channels last, 0..255 as uint8"
    return ""


def _hint_array(image: np.ndarray) -> str:
    shape = image.shape
    if 0 in shape:
        return "the array is empty: check that the file was read and that the box lies inside the image"
    if len(shape) == 4:
        return "this is a batch: pass one image at a time, or the whole batch to stack_crops"
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        return "a grey image becomes RGB with np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)"
    if len(shape) == 3 and shape[2] == 4:
        return "drop the alpha channel with image[..., :3], or for OpenCV's order image[..., 2::-1]"
    if len(shape) == 3 and shape[0] == 3 and shape[2] != 3:
        return "channels come last here: image.transpose(1, 2, 0)"
    if len(shape) != 3 or shape[2] != 3:
        return "the last axis must hold R, G and B"
    if image.dtype == np.bool_:
        return "scale it with image.astype(np.uint8) * 255"
    if np.issubdtype(image.dtype, np.floating):
        # fmin and fmax skip NaN without a warning.
        low, high = np.fmin.reduce(image, axis=None), np.fmax.reduce(image, axis=None)
        if low < 0:
            return f"values run from {low:.3g} to {high:.3g}: undo the normalisation, the engine applies its own"
        if high <= 1:
            return "values are 0..1: pass (image * 255).round().astype(np.uint8)"
        return "pass image.round().clip(0, 255).astype(np.uint8)"
    return "scale it to 0..255 and pass it .astype(np.uint8)"
