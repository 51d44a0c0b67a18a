"""Gets what tests need of npm: a headless Chromium, for Linux on x86_64, axe-core, which finds what keeps
people with a screen reader or a keyboard from using a page, and Express, an upstream that ignores case.

    python npm.py FOLDER

They are of the versions and have the hashes below; those of Express are in express/package-lock.json.
Without npm, or on another kind of machine, it says what is missing and succeeds: the tests then take an
installed Chromium, or are skipped.
"""

import base64
import hashlib
import io
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile

CHROMIUM = (
    "@sparticuz/chromium@147.0.0",
    "4ZKeAQQa8up2mt675qSitztLdbQrlf8BKdC5naeap+5Mv1OV1OlJdPoU+EJC/p5sQUJUQmN4r+q5+EhaaOUHpQ==",
)
AXE = (
    "axe-core@4.14.1",
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
)


def fetch(package: tuple[str, str]) -> tarfile.TarFile:
    """Returns the content of an npm package whose SHA-512 is the one expected."""
    name, want = package
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (file,) = pathlib.Path(folder).glob("*.tgz")
        content = file.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != want:
        sys.exit(f"make tools: {name} is not what it was: its hash differs from the one in tools/npm.py")
    return tarfile.open(fileobj=io.BytesIO(content))


def read(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile("package/" + name)
    if file is None:
        sys.exit(f"make tools: {name} is not part of the package")
    return file.read()


def get_axe(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True)
    (folder / "axe.min.js").write_bytes(read(fetch(AXE), "axe.min.js"))


def get_chromium(folder: pathlib.Path) -> None:
    import brotli  # from requirements.txt

    package = fetch(CHROMIUM)
    folder.mkdir(parents=True)
    binary = folder / "chromium"
    binary.write_bytes(brotli.decompress(read(package, "bin/chromium.br")))
    binary.chmod(0o755)
    # The libraries and the fonts that a bare machine lacks; the libraries for GL lie beside the
    # program.
    for name, to in (("al2023", folder), ("swiftshader", folder), ("fonts", folder / "fonts")):
        content = brotli.decompress(read(package, f"bin/{name}.tar.br"))
        with tarfile.open(fileobj=io.BytesIO(content)) as parts:
            parts.extractall(to, filter="data")
    (folder / "fonts.conf").write_text(
        '<?xml version="1.0"?>\n<!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n<fontconfig>\n'
        f"  <dir>{(folder / 'fonts').resolve()}</dir>\n  <dir>/usr/share/fonts</dir>\n"
        f"  <cachedir>{(folder / 'fonts-cache').resolve()}</cachedir>\n</fontconfig>\n"
    )


def get_express(folder: pathlib.Path) -> None:
    # Renewed by: npm update --package-lock-only --omit-lockfile-registry-resolved, in
    # tools/express. That keeps out of the lock which registry somebody has used.
    folder.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(pathlib.Path(__file__).parent / "express" / name, folder)
    subprocess.run(["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    if shutil.which("npm") is None:
        print("make tools: no npm, so no browser and no Express: some tests need them (Node.js 20 or newer).", file=sys.stderr)
        return
    get_axe(folder / "axe-core")
    get_express(folder / "express")
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        get_chromium(folder / "chromium")
    else:
        print("make tools: no Chromium for this machine: install one, and set CHROMIUM if it is not on PATH.", file=sys.stderr)


if __name__ == "__main__":
    os.umask(0o022)
    main()
