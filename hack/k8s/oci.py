#!/usr/bin/env python3
"""oci.py OUT.tar SPEC: writes an OCI image layout, as one tar, that `ctr images import` takes. Reproducible.

SPEC is JSON: {"layers": {NAME: {"tree": FOLDER, "files": {PATH: SOURCE}, "links": {PATH: TARGET}, "text": {PATH: TEXT}}},
"images": [{"name": REF, "layers": [NAME...], "entrypoint": [...], "cmd": [...]}]}. Layers are written once, however many
images share them. Files of "files" are executable; owners are root and times are zero.
"""
import hashlib
import io
import json
import os
import platform
import sys
import tarfile

ARCH = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
MEDIA = "application/vnd.oci.image."


def entry(path, mode, kind=tarfile.REGTYPE, size=0, target=""):
    info = tarfile.TarInfo(path.strip("/"))
    info.mode, info.type, info.size, info.linkname = mode, kind, size, target
    return info


def anonymous(info):
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def write_layer(out, spec):
    """Writes the uncompressed layer to `out`; returns its digest and size."""
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
        if "tree" in spec:
            for name in sorted(os.listdir(spec["tree"])):
                tar.add(os.path.join(spec["tree"], name), arcname=name, filter=anonymous)
        made = set()

        def parents(path):
            parts = path.strip("/").split("/")[:-1]
            for n in range(1, len(parts) + 1):
                folder = "/".join(parts[:n])
                if folder not in made and not os.path.lexists(os.path.join(spec.get("tree", "/nowhere"), folder)):
                    made.add(folder)
                    tar.addfile(entry(folder, 0o1777 if folder == "tmp" else 0o755, tarfile.DIRTYPE))

        for path, source in sorted(spec.get("files", {}).items()):
            parents(path)
            with open(source, "rb") as file:
                tar.addfile(entry(path, 0o755, size=os.fstat(file.fileno()).st_size), file)
        for path, text in sorted(spec.get("text", {}).items()):
            parents(path)
            tar.addfile(entry(path, 0o644, size=len(text.encode())), io.BytesIO(text.encode()))
        for path, target in sorted(spec.get("links", {}).items()):
            parents(path)
            tar.addfile(entry(path, 0o777, tarfile.SYMTYPE, target=target))
    digest = hashlib.sha256()
    with open(out, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest(), os.path.getsize(out)


def main():
    out, spec = sys.argv[1], json.loads(sys.argv[2])
    blobs, layers = {}, {}
    for name, layer in spec["layers"].items():
        path = f"{out}.{name}"
        digest, size = write_layer(path, layer)
        layers[name] = digest, size
        blobs[digest] = path

    def descriptor(kind, data, **more):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": MEDIA + kind, "digest": "sha256:" + digest, "size": len(data), **more}

    manifests = []
    for image in spec["images"]:
        config = {
            "architecture": ARCH,
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": image.get("entrypoint"),
                "Cmd": image.get("cmd"),
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + layers[name][0] for name in image["layers"]]},
            "history": [{"created_by": name} for name in image["layers"]],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MEDIA + "manifest.v1+json",
            "config": descriptor("config.v1+json", json.dumps(config).encode()),
            "layers": [
                {"mediaType": MEDIA + "layer.v1.tar", "digest": "sha256:" + layers[name][0], "size": layers[name][1]}
                for name in image["layers"]
            ],
        }
        names = {"io.containerd.image.name": image["name"], "org.opencontainers.image.ref.name": image["name"].rsplit(":", 1)[1]}
        platform_ = {"architecture": ARCH, "os": "linux"}
        manifests.append(descriptor("manifest.v1+json", json.dumps(manifest).encode(), platform=platform_, annotations=names))

    with tarfile.open(out + ".new", "w", format=tarfile.GNU_FORMAT) as tar:

        def add(path, data):
            if isinstance(data, str):
                with open(data, "rb") as file:
                    tar.addfile(entry(path, 0o644, size=os.path.getsize(data)), file)
            else:
                tar.addfile(entry(path, 0o644, size=len(data)), io.BytesIO(data))

        add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "mediaType": MEDIA + "index.v1+json", "manifests": manifests}
        add("index.json", json.dumps(index).encode())
        for digest, data in blobs.items():
            add("blobs/sha256/" + digest, data)
    for name in spec["layers"]:
        os.remove(f"{out}.{name}")
    os.rename(out + ".new", out)


main()
