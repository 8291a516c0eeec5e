"""What a change did: two versions compared, the gate's verdict on it, and both as Markdown."""
