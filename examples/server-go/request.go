package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"sort"
	"strings"

	"yinian.ai/yinian"
)

// apiError is a failure in OpenAI's shape.
type apiError struct {
	status  int
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}

func (e *apiError) Error() string { return e.Message }

func invalid(param, format string, args ...any) *apiError {
	e := &apiError{status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...), Type: "invalid_request_error"}
	if param != "" {
		e.Param = &param
	}
	return e
}

// common is what both endpoints take; the last line is the engine's own.
type common struct {
	Model            string           `json:"model"`
	Stream           bool             `json:"stream"`
	StreamOptions    *streamOptions   `json:"stream_options"`
	N                *int             `json:"n"`
	MaxTokens        *int             `json:"max_tokens"`
	Stop             *texts           `json:"stop"`
	Seed             *int64           `json:"seed"`
	Temperature      *float32         `json:"temperature"`
	TopP             *float32         `json:"top_p"`
	PresencePenalty  *float32         `json:"presence_penalty"`
	FrequencyPenalty *float32         `json:"frequency_penalty"`
	LogitBias        *json.RawMessage `json:"logit_bias"`

	TopK              *int     `json:"top_k"`
	MinP              *float32 `json:"min_p"`
	RepetitionPenalty *float32 `json:"repetition_penalty"`
	MinTokens         int      `json:"min_tokens"`
	IgnoreEOS         bool     `json:"ignore_eos"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

type chatRequest struct {
	common
	Messages            json.RawMessage `json:"messages"`
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	Logprobs            bool            `json:"logprobs"`
	TopLogprobs         *int            `json:"top_logprobs"`
}

type completionRequest struct {
	common
	Prompt   json.RawMessage `json:"prompt"`
	Logprobs *int            `json:"logprobs"`
}

// texts is one string or a list of them.
type texts []string

func (t *texts) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*t = texts{one}
		return nil
	}
	if json.Unmarshal(data, (*[]string)(t)) != nil {
		return invalid("stop", "stop is not a string or a list of strings")
	}
	return nil
}

// names are the JSON names of a struct's fields, with those of embedded structs.
func names(t reflect.Type, into map[string]bool) map[string]bool {
	for i := 0; i < t.NumField(); i++ {
		if f := t.Field(i); f.Anonymous {
			names(f.Type, into)
		} else {
			into[f.Tag.Get("json")] = true
		}
	}
	return into
}

// parse refuses every field that would have no effect, by name: only null says as much as nothing. The names are compared here,
// as encoding/json takes them in any case.
func parse(body []byte, to any) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return invalid("", "the body is not a JSON object: %v", err)
	}
	known := names(reflect.TypeOf(to).Elem(), map[string]bool{})
	var unknown []string
	for name, value := range fields {
		if !known[name] && string(value) != "null" {
			unknown = append(unknown, name)
		}
		if !known[name] {
			delete(fields, name)
		}
	}
	if sort.Strings(unknown); len(unknown) > 0 {
		return invalid(unknown[0], "field %q is unknown, or not supported by this server", unknown[0])
	}
	if raw, ok := fields["stream_options"]; ok {
		if err := parseStreamOptions(raw); err != nil {
			return err
		}
	}
	rest, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	switch err := json.Unmarshal(rest, to).(type) {
	case nil:
		return nil
	case *apiError:
		return err
	case *json.UnmarshalTypeError:
		name := strings.TrimPrefix(err.Field, "common.")
		return invalid(name, "field %q is a JSON %s; expected %v", name, err.Value, err.Type)
	default:
		return invalid("", "%v", err)
	}
}

func parseStreamOptions(raw json.RawMessage) error {
	var options map[string]json.RawMessage
	if json.Unmarshal(raw, &options) != nil {
		return invalid("stream_options", "stream_options is not an object")
	}
	for name := range options {
		if name != "include_usage" {
			return invalid("stream_options."+name, "field %q of stream_options is unknown, or not supported by this server", name)
		}
	}
	return nil
}

// job is a request as the engine takes it, with how its answer is to be written.
type job struct {
	yinian.Request
	chat, stream, includeUsage bool
}

func (c *common) job() (*job, error) {
	if c.StreamOptions != nil && !c.Stream {
		return nil, invalid("stream_options", "stream_options is given, but stream is not true")
	}
	j := &job{stream: c.Stream, includeUsage: c.StreamOptions != nil && c.StreamOptions.IncludeUsage}
	r := yinian.Request{
		N: 1, MaxTokens: c.MaxTokens, Temperature: c.Temperature, TopP: c.TopP, PresencePenalty: c.PresencePenalty,
		FrequencyPenalty: c.FrequencyPenalty, TopK: c.TopK, MinP: c.MinP, RepetitionPenalty: c.RepetitionPenalty,
		MinTokens: c.MinTokens, IgnoreEOS: c.IgnoreEOS, WantTokens: true, FinalOnly: !c.Stream,
	}
	if c.N != nil {
		if r.N = *c.N; r.N < 1 || r.N > 128 {
			return nil, invalid("n", "n is %d; expected 1 to 128", r.N)
		}
	}
	if c.Stop != nil {
		r.StopTexts = *c.Stop
	}
	if c.Seed != nil {
		r.Seed = yinian.Ptr(uint64(*c.Seed))
	}
	if c.LogitBias != nil {
		r.ExtraJSON = `{"logit_bias":` + string(*c.LogitBias) + `}`
	}
	j.Request = r
	return j, nil
}

func parseChat(body []byte, model string) (*job, error) {
	var c chatRequest
	if err := parse(body, &c); err != nil {
		return nil, err
	}
	j, err := c.job()
	if err != nil {
		return nil, err
	}
	if c.MaxCompletionTokens != nil {
		if c.MaxTokens != nil && *c.MaxTokens != *c.MaxCompletionTokens {
			return nil, invalid("max_tokens", "max_tokens and max_completion_tokens are both given, and differ")
		}
		j.MaxTokens = c.MaxCompletionTokens
	}
	if c.TopLogprobs != nil && !c.Logprobs {
		return nil, invalid("top_logprobs", "top_logprobs is given, but logprobs is not true")
	}
	if c.Logprobs {
		if j.Logprobs = c.TopLogprobs; j.Logprobs == nil {
			j.Logprobs = yinian.Ptr(0)
		}
	}
	if c.Messages == nil {
		return nil, invalid("messages", "messages is missing")
	}
	j.chat, j.Chat = true, `{"messages":`+string(c.Messages)+`}`
	return j, served(c.Model, model)
}

func parseCompletion(body []byte, model string) (*job, error) {
	var c completionRequest
	if err := parse(body, &c); err != nil {
		return nil, err
	}
	j, err := c.job()
	if err != nil {
		return nil, err
	}
	var list []string
	switch {
	case json.Unmarshal(c.Prompt, &j.Prompt) == nil:
	case json.Unmarshal(c.Prompt, &j.Tokens) == nil:
	case json.Unmarshal(c.Prompt, &list) == nil && len(list) == 1:
		j.Tokens, j.Prompt = nil, list[0]
	default:
		return nil, invalid("prompt", "prompt is missing, or is not one prompt: a string or a list of token ids")
	}
	if j.Logprobs = c.Logprobs; c.MaxTokens == nil {
		j.MaxTokens = yinian.Ptr(16) // OpenAI's default
	}
	return j, served(c.Model, model)
}

// served refuses the name of another model.
func served(asked, model string) error {
	if asked == "" || asked == model {
		return nil
	}
	e := invalid("model", "model %q is not served here; this is %q", asked, model)
	e.status, e.Code = http.StatusNotFound, yinian.Ptr("model_not_found")
	return e
}
