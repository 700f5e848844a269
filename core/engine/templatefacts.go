package engine

import (
	"strings"

	"modeld/core/transport"
)

// templateFormats names a chat template by a mark that only its family has.
var templateFormats = []struct{ mark, name string }{
	{"<|im_start|>", "chatml"},
	{"<|start_header_id|>", "llama3"},
	{"<|header_start|>", "llama4"},
	{"<start_of_turn>", "gemma"},
	{"<|start|>", "harmony"},
	{"<|assistant|>", "zephyr"},
	{"<｜Assistant｜>", "deepseek"},
	{"<|START_OF_TURN_TOKEN|>", "command-r"},
	{"[INST]", "mistral"},
}

// DescribeTemplate fills info's chat template facts from the template's text.
func DescribeTemplate(template string, info *transport.ModelInfo) {
	if template == "" {
		return
	}
	info.ChatTemplateFormat = "jinja"
	for _, f := range templateFormats {
		if strings.Contains(template, f.mark) {
			info.ChatTemplateFormat = f.name
			break
		}
	}
	info.ChatTemplateSupportsToolCalls = strings.Contains(template, "tools")
	for _, tag := range []string{"<think>", "<|think|>", "<|channel|>analysis", "[THINK]"} {
		if strings.Contains(template, tag) {
			info.ChatTemplateSupportsThinking = true
			info.ChatTemplateThinkingStartTag = tag
			break
		}
	}
	if strings.Contains(template, "enable_thinking") {
		info.ChatTemplateSupportsThinking = true
	}
	info.ChatTemplateSupportsReasoningEffort = strings.Contains(template, "reasoning_effort")
	if info.ChatTemplateSupportsThinking {
		info.ChatTemplateReasoningFormat = "tags"
	}
}
