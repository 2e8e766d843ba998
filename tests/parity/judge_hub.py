"""Questions about what a hub says."""


def files(request):
    """{"endpoint", "name", "commit", "folder"} -> of each file: commit, size, sum by its headers, sha256 of content."""
    import hashlib
    from pathlib import Path

    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download

    endpoint, name, commit = request["endpoint"], request["name"], request["commit"]
    folder = Path(snapshot_download(name, local_dir=request["folder"], endpoint=endpoint, token=False))
    found = {}
    for path in folder.iterdir():
        if path.is_file():
            told = get_hf_file_metadata(hf_hub_url(name, path.name, endpoint=endpoint, revision=commit), token=False)
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[path.name] = [told.commit_hash, told.size, told.etag, content]
    return found
