"""Chat templates in the manners of many families, and conversations to render with them."""

# ruff: noqa: E501 - templates are written as their families write them
from __future__ import annotations

from typing import Any

USER = {"role": "user", "content": 'What\'s the weather in 北京? <b>&amp;</b> {{ 7 * 7 }} "quoted" 🌦'}
SYSTEM = {"role": "system", "content": "  Be brief.\n"}
ASSISTANT = {"role": "assistant", "content": "Rain.\n"}
THOUGHT = {"role": "assistant", "content": "<think>\nA cloud.\n</think>\n\nRain."}
REASONED = {"role": "assistant", "reasoning": "A cloud.", "content": "Rain."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "weather", "arguments": {"place": "北京", "days": [1, 2]}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": '{"sky": "rain", "t": 3.5}'}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}]}
LAST = {"role": "user", "content": "Thanks!"}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [USER],
    "a system turn": [SYSTEM, USER],
    "several turns": [SYSTEM, USER, ASSISTANT, LAST],
    "a thought": [USER, THOUGHT, LAST],
    "a reason beside the answer": [USER, REASONED, LAST],
    "a call and its result": [USER, CALL, RESULT],
    "parts": [PARTS],
    "no user": [SYSTEM],
    "nothing": [{"role": "user", "content": None}],
}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What the sky does <now>",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES: dict[str, str] = {
    "chatml": CHATML,
    "chatml with a default system turn": """
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are helpful.<|im_end|>
{% endif %}
{% for m in messages %}
    {% if loop.first and m.role == 'system' %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content | trim ~ '<|im_end|>\\n' }}
    {% else %}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
    {% endif %}
{% endfor %}""",
    "masks": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
        "{% endgeneration %}{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
    ),
    "masks with a variable of their own": (
        "{% set x = 'out' %}{%- generation -%}  {% set x = 'in' %}{{ x }}  {%- endgeneration -%}{{ x }}"
        "{% for m in messages %}{% generation %}{{ m.role }}{{ loop.index }}{% endgeneration %}{% endfor %}"
    ),
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}
{%- set messages = messages[1:] %}{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("single tool-calls only") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- elif message.content is mapping or message.content is iterable %}{{- message.content | tojson }}{%- endif %}
{%- endfor %}""",
    "mistral": """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token}}
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}""",
    "mistral with tools": """{%- set user_messages = messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}{%- for message in messages %}{%- if message["role"] == "user" %}
{%- if tools is not none and (message == user_messages[-1]) %}{{- "[AVAILABLE_TOOLS] [" }}
{%- for tool in tools %}{%- set tool = tool.function %}{{- '{"type": "function", "function": {' }}
{%- for key, val in tool.items() if key != "return" %}
{%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
{%- if not loop.last %}{{- ", " }}{%- endif %}{%- endfor %}{{- "}}" }}{%- endfor %}{{- "][/AVAILABLE_TOOLS]" }}{%- endif %}
{{- "[INST] " + (message["content"] if message["content"] is string else message["content"][0]["text"]) + "[/INST]" }}
{%- elif message.tool_calls is defined and message.tool_calls is not none %}{{- "[TOOL_CALLS] [" }}
{%- for c in message.tool_calls %}{%- set out = c.function|tojson %}{{- out[:-1] }}
{{- ', "id": "' + c.id + '"}' }}{%- endfor %}{{- "]" + eos_token }}{%- endif %}{%- endfor %}""",
    "qwen": """{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- "# Tools\\n<tools>" }}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}{{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}
{%- for message in messages %}{%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
{%- if (message.role == "user") or (message.role == "system" and not loop.first) %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- elif message.role == "assistant" %}{%- set reasoning_content = '' %}
{%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
{%- elif '</think>' in content %}{%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- if message.tool_calls %}{%- for tool_call in message.tool_calls %}{%- set tool_call = tool_call.function %}
{{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
{%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}{{- '}\\n</tool_call>' }}{%- endfor %}{%- endif %}
{{- '<|im_end|>\\n' }}{%- elif message.role == "tool" %}{{- '<tool_response>' + content + '</tool_response>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}""",
    "minicpm4": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
        "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "minicpm4.1, which thinks": """{%- macro json_to_python_type(param_name, json_spec) %}
{%- set basic_type_map = {'string': 'str', 'number': 'float', 'integer': 'int', 'boolean': 'bool', 'null': 'None'} %}
{%- if json_spec.enum %}{{- param_name|title }}{%- elif basic_type_map[json_spec.type] is defined %}
{{- basic_type_map[json_spec.type] }}{%- elif json_spec.type is iterable %}{{- json_spec.type | join('|') }}{%- else %}Any{%- endif %}
{%- endmacro %}
{%- if tools %}{{- '<|im_start|>system\\n# Functions\\n' }}{%- for tool in tools %}{%- set f = tool.function or tool %}
def {{ f.name }}({% for n, s in f.parameters.properties.items() %}{{ n }}: {{ json_to_python_type(n, s) }}{% if not loop.last %}, {% endif %}{% endfor %}):
    \"\"\"{{ f.description | default('') }}\"\"\"
{% endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + (message.content if message.content is string else '') + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n' }}{%- endif %}
{%- if enable_thinking is defined and enable_thinking is true %}{{- '<think>\\n' }}{%- endif %}{%- endif %}""",
    "minicpm5, which calls tools": """{{- bos_token }}
{%- for message in messages %}{%- if message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- else %}{{- '<|im_start|>' ~ message.role ~ '\\n' }}{%- if message.content is string %}{{- message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}{{- '\\n<function name="' ~ call.function.name ~ '">' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<param name="' ~ key ~ '">' ~ (value if value is string else value | tojson(ensure_ascii=False)) ~ '</param>' }}{%- endfor %}
{{- '</function>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' ~ ('<think>\\n' if enable_thinking else '<think>\\n\\n</think>\\n\\n') }}{%- endif %}""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}""",
    "deepseek": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% set ns = namespace(is_first=false, system_prompt='') %}
{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}
{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' ~ message['content']}}{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}
{% if content and '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' ~ content ~ eos_token}}{%- endif %}{%- endfor -%}""",
    "documents": """{% if documents %}{% for d in documents %}Document {{ loop.index }}: {{ d.title | upper }} {{ d['text'] }}
{% endfor %}{% else %}none ({{ documents is defined }}, {{ documents is none }}){% endif %}{{ messages[-1].content }}""",
    "what is defined": (
        "{{ tools is defined }} {{ tools is none }} {{ documents is defined }} {{ bos_token is defined }} "
        "{{ eos_token is defined }} {{ pad_token is defined }}[{{ pad_token }}] {{ add_generation_prompt }} "
        "{{ enable_thinking is defined }} {{ strftime_now is defined }} {{ raise_exception is defined }} "
        "{{ 'content' in messages[0] }} {{ messages[0].reasoning_content is defined }} {{ range is defined }}"
    ),
    "reasons": "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning }}|{{ m.reasoning_content }};{% endfor %}",
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index }}{{ m.role }}"
        "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "json": (
        "{{ messages | tojson }}\n{{ messages | tojson(ensure_ascii=True) }}\n{{ messages | tojson(indent=2) }}\n"
        "{{ messages | tojson(separators=(',', ':'), sort_keys=True) }}\n{{ tools | tojson(sort_keys=true, indent=1) }}"
    ),
    "dates": "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%A, %d %B %Y %H:%M') }} {{ strftime_now('') }}{{ messages[0].role }}",
    "dictionaries": (
        "{% set d = dict(a=1, b=messages[0].role) %}{{ d.b }}{{ d['a'] }}{{ dict([('x', 2)]).x }}{{ dict.fromkeys(['k'], 3) }}"
        "{{ d.items() | list }}{{ {'m': 1}.get('n', 'none') }}{% set ns = namespace(self=1, total=0) %}"
        "{% for m in messages %}{% set ns.total = ns.total + (m.content or '') | length %}{% endfor %}{{ ns.total }}"
    ),
    "strings": (
        "{% for m in messages %}{% if m.content is string %}{{ m.content.split()[0] }}{{ m.content[1:5] }}"
        "{{ m.content | replace('\\n', '/') | e }}{{ '%s-%d' % (m.role, loop.index) }}{{ m.role.title() }}{{ m.content | length }}"
        "{% endif %}{% endfor %}{{ '{:>4}'.format(3) }}{{ ('a', 'b') | join('+') }}{{ 7 // 2 }}{{ 1.0 }}{{ none }}{{ true }}"
    ),
    "white space": "  {% if true %}\n   a\n  {% endif %}\n\t{%- if true %} b {% endif -%}\n c\n{# note #}\n d\n",
    "macros": (
        "{% macro turn(m, mark='#') %}{{ mark }}{{ m.role }}: {{ caller() if caller is defined else m.content }}\n{% endmacro %}"
        "{% for m in messages %}{{ turn(m) }}{% call turn(m, mark='*') %}called{% endcall %}{% endfor %}"
    ),
    "pieces of content": (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{% if p.type == 'text' %}{{ p.text }}{% else %}<{{ p['type'] }}>{% endif %}{% endfor %}{% endif %}{% endfor %}"
    ),
    "what a name is not": "{% set ns = namespace(_x=1) %}{{ ns._x }}",
    "what stays closed": "{{ messages[0].__class__ }}{{ ''.__class__.__mro__ }}",
    "what is not there": "{{ messages[0].nothing.at_all }}",
    "a changed list": "{{ messages.append(1) }}",
    "a bad date": "{{ strftime_now(1) }}",
}
