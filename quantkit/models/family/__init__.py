"""What checkpoints of the MiniCPM family look like: the members and what tells them apart (`members.py`,
`recognition.py`), the text model inside a multimodal one (`multimodal.py`), and tensors under other names than the
model's own (`tensor_names.py`).

They import errors and tensors only: `quantkit.models.recognition` names a member that it refuses.
"""
