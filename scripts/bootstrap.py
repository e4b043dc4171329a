"""Make .venv and install what a requirements lock pins, once; what is missing is said beforehand.

Runs on any Python from 3.6, so that one that is too old gets a sentence instead of a traceback.
Exit code 2: a prerequisite is missing, and nothing was downloaded.
"""

import argparse
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed"
"""Holds what was installed: the extra, and a hash of all that decides the installation."""
LOCK = ROOT / "requirements.lock"
GPU_LOCK = ROOT / "requirements-gpu.lock"
PYTHONS = ((3, 11), (3, 13))
"""First and last Python that every locked package has a wheel for."""
LIBRARIES = {
    "libnuma.so.1": "apt install libnuma1",
    "libstdc++.so.6": "apt install libstdc++6",
}
MEMORY_GB = 8
DISK_GB = 15
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main():
    """Check, then install; does nothing where that was done before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", choices=["cpu", "gpu"], help="default: as before, else cpu")
    extra = parser.parse_args().extra or installed_extra() or "cpu"
    wanted = f"{extra} {fingerprint()}"
    if STAMP.is_file() and STAMP.read_text() == wanted and works(PYTHON):
        return
    problem = missing()
    if problem:
        sys.stderr.write(problem + "\n")
        sys.exit(2)
    if not works(PYTHON):
        run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    install_gpu() if extra == "gpu" else install_cpu()
    STAMP.write_text(wanted)


def missing():
    """The first prerequisite that is not met, as one sentence; empty if all are.

    A compiler is none of them: only wheels are installed, and engines run uncompiled.
    """
    return (
        python_problem(sys.version_info[:2])
        or platform_problem(platform.system(), platform.machine())
        or venv_problem()
        or library_problem(LIBRARIES)
        or memory_problem(available_memory_gb())
        or disk_problem(shutil.disk_usage(str(ROOT)).free / 1e9)
    )


def python_problem(version):
    """Whether every locked package has a wheel for this Python."""
    first, last = (".".join(map(str, v)) for v in PYTHONS)
    if PYTHONS[0] <= version <= PYTHONS[1]:
        return ""
    found = ".".join(map(str, version))
    hint = f"name one, as in `make PYTHON=python{first}`"
    return f"Python {first} to {last} is needed and this is {found}: {hint}."


def platform_problem(system, machine):
    """Whether vLLM's CPU build has a wheel for this machine."""
    if system == "Linux" and machine in ("x86_64", "aarch64", "arm64"):
        return ""
    return f"Linux on x86_64 or aarch64 is needed and this is {system} on {machine}."


def venv_problem():
    """Debian and others ship Python without the means to make an environment."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "Python's venv module is missing: install it (on Debian: apt install python3-venv)."
    return ""


def library_problem(names):
    """Whether the system has the libraries that vLLM's CPU build is linked to."""
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            return f"The system library {name} is missing (on Debian: {names[name]})."
    return ""


def memory_problem(free_gb):
    """Whether engine, trainer and Ray fit; unknown memory passes."""
    if free_gb is None or free_gb >= MEMORY_GB:
        return ""
    return f"{MEMORY_GB} GB of free memory are needed and {free_gb:.1f} are there."


def disk_problem(free_gb):
    """Whether the packages (5 GB), pip's cache, models and runs fit."""
    if free_gb >= DISK_GB:
        return ""
    return f"{DISK_GB} GB of free disk are needed at {ROOT} and {free_gb:.1f} are there."


def available_memory_gb():
    """What the kernel could give out now, or the container's limit where that is less."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail")]
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or the limit is the word "max"
        pass
    return min(limits) / 1e9 if limits else None


def fingerprint():
    """Hash of all that decides the installation."""
    digest = hashlib.sha256()
    for path in (LOCK, GPU_LOCK, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def installed_extra():
    """The extra of the present installation; empty if there is none."""
    return STAMP.read_text().split()[0] if STAMP.is_file() else ""


def works(python):
    """Whether the environment's interpreter still starts (its base may be gone)."""
    return subprocess.call([str(python), "-c", ""]) == 0 if python.exists() else False


def install_cpu():
    """Install exactly what is locked, then this project in place."""
    install_torch()
    install_locked(LOCK)


def install_gpu():
    """The same with vLLM's and torch's CUDA builds, from a lock of their own."""
    install_locked(GPU_LOCK)


def install_locked(lock):
    """Install a lock's pins and nothing else, then this project in place."""
    pip("install", "--no-deps", "-r", str(lock))
    pip("install", "--no-deps", "--no-build-isolation", "--quiet", "-e", str(ROOT))


def install_torch():
    """Take torch's CPU build from where pip is configured to look, else from PyTorch's index."""
    pinned = [line for line in LOCK.read_text().splitlines() if line.startswith("torch==")]
    command = pip_command("install", "--no-deps", *pinned)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"pip's own configuration has no {pinned[0]}; trying {PYTORCH_CPU_INDEX}")
        pip("install", "--no-deps", "--index-url", PYTORCH_CPU_INDEX, *pinned)


def pip(*arguments):
    """Run the environment's pip."""
    run(pip_command(*arguments))


def pip_command(*arguments):
    """Only wheels (but this project): nothing is compiled, no package's setup code runs."""
    verb, *rest = arguments
    always = ["--disable-pip-version-check", "--only-binary", ":all:"]
    return [str(PYTHON), "-m", "pip", verb, *always, *rest]


def run(command):
    """Run a program and stop where it fails; it has said why."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    status = subprocess.call(command, env=environment)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
