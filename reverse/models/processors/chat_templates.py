"""The chat templates of the families, for checkpoints that are built here (tiny and converted ones).

They write the chats that the published models were trained on, and mark the assistant's part with
`{% generation %}`, so that `apply_chat_template(..., return_assistant_tokens_mask=True)` finds what to train.
Published checkpoints come with their own templates, which are used unchanged.
"""

# LLaVA-1.5 over Vicuna v1: "USER: <image>\nDescribe this image. ASSISTANT: A dog.</s>"
# (llava-hf/llava-1.5-7b-hf ends the answer with a space; the model was trained on the end-of-sequence token.)
LLAVA_CHAT = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{% set parts = [{'type': 'text', 'text': message['content']}] %}"
    "{% else %}{% set parts = message['content'] %}{% endif %}"
    "{% if message['role'] == 'system' %}"
    "{% for part in parts %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% elif message['role'] == 'user' %}"
    "{{ 'USER: ' }}"
    "{% for part in parts %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in parts %}{% if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% else %}"
    "{{ 'ASSISTANT:' }}{% generation %}"
    "{% for part in parts %}{{ ' ' + part['text'] }}{% endfor %}{{ eos_token }}"
    "{% endgeneration %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# Qwen2.5-VL: "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe this image.<|im_end|>\n"
QWEN2_5_VL_CHAT = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% if message['content'] is string %}{% set parts = [{'type': 'text', 'text': message['content']}] %}"
    "{% else %}{% set parts = message['content'] %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% for part in parts %}{{ part['text'] }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endgeneration %}{% else %}"
    "{% for part in parts %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
