package engine

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/nikolalohinski/gonja/v2/builtins"
	"github.com/nikolalohinski/gonja/v2/exec"
)

// methods are Python's methods of strings and dictionaries.
func methods(order keyOrder) exec.Methods {
	m := builtins.Methods
	m.Str = stringMethods
	m.Dict = dictMethods(order)
	return m
}

// stringMethods are the library's, with those that fail without arguments
// replaced. It is never changed.
var stringMethods = func() *exec.MethodSet[string] {
	set := make(map[string]exec.Method[string])
	for _, name := range []string{
		"capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii",
		"isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join",
		"ljust", "lower", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition",
		"splitlines", "startswith", "swapcase", "title", "upper", "zfill",
	} {
		if method, ok := builtins.Methods.Str.Get(name); ok {
			set[name] = method
		}
	}
	set["strip"] = stripMethod(strings.TrimFunc)
	set["lstrip"] = stripMethod(strings.TrimLeftFunc)
	set["rstrip"] = stripMethod(strings.TrimRightFunc)
	set["split"] = func(self string, _ *exec.Value, args *exec.VarArgs) (any, error) {
		sep, n, err := splitArguments(args)
		switch {
		case err != nil:
			return nil, err
		case sep == "" && n < 0:
			return anyList(strings.Fields(self)), nil
		case sep == "":
			return nil, errors.New("split with a limit needs a separator")
		case n < 0:
			return anyList(strings.Split(self, sep)), nil
		}
		return anyList(strings.SplitN(self, sep, n+1)), nil
	}
	set["rsplit"] = func(self string, _ *exec.Value, args *exec.VarArgs) (any, error) {
		sep, n, err := splitArguments(args)
		if err != nil || sep == "" {
			return nil, errors.Join(err, errors.New("rsplit needs a separator"))
		}
		parts := strings.Split(self, sep)
		if n >= 0 && len(parts) > n+1 {
			head := len(parts) - n
			parts = append([]string{strings.Join(parts[:head], sep)}, parts[head:]...)
		}
		return anyList(parts), nil
	}
	return exec.NewMethodSet(set)
}()

func anyList(parts []string) []any {
	list := make([]any, len(parts))
	for i, p := range parts {
		list[i] = p
	}
	return list
}

func stripMethod(trim func(string, func(rune) bool) string) exec.Method[string] {
	return func(self string, _ *exec.Value, args *exec.VarArgs) (any, error) {
		cut := unicode.IsSpace
		if len(args.Args) > 0 && !args.Args[0].IsNil() {
			chars := args.Args[0].String()
			cut = func(r rune) bool { return strings.ContainsRune(chars, r) }
		}
		return trim(self, cut), nil
	}
}

func splitArguments(args *exec.VarArgs) (sep string, n int, err error) {
	n = -1
	for i, a := range args.Args {
		switch {
		case i == 0 && a.IsString():
			sep = a.String()
		case i == 0 && a.IsNil():
		case i == 1 && a.IsInteger():
			n = a.Integer()
		default:
			return "", 0, errors.New("split takes a string and an integer")
		}
	}
	if a := args.KwArgs["maxsplit"]; a != nil && a.IsInteger() {
		n = a.Integer()
	}
	return sep, n, nil
}

// dictMethods keep the order of decoded JSON's keys.
func dictMethods(order keyOrder) *exec.MethodSet[map[string]any] {
	keys := func(self map[string]any, v *exec.Value) []string {
		if m, ok := v.Interface().(map[string]any); ok {
			return order.of(m)
		}
		return slices.Sorted(maps.Keys(self))
	}
	set := map[string]exec.Method[map[string]any]{
		"keys": func(self map[string]any, v *exec.Value, _ *exec.VarArgs) (any, error) {
			return anyList(keys(self, v)), nil
		},
		"values": func(self map[string]any, v *exec.Value, _ *exec.VarArgs) (any, error) {
			var list []any
			for _, k := range keys(self, v) {
				list = append(list, original(self, v, k))
			}
			return list, nil
		},
		"items": func(self map[string]any, v *exec.Value, _ *exec.VarArgs) (any, error) {
			list := []any{}
			for _, k := range keys(self, v) {
				list = append(list, []any{k, original(self, v, k)})
			}
			return list, nil
		},
		"get": func(self map[string]any, v *exec.Value, args *exec.VarArgs) (any, error) {
			if len(args.Args) == 0 {
				return nil, errors.New("get takes a key")
			}
			if _, ok := self[args.Args[0].String()]; ok {
				return original(self, v, args.Args[0].String()), nil
			}
			if len(args.Args) > 1 {
				return args.Args[1].Interface(), nil
			}
			return nil, nil
		},
	}
	for _, name := range []string{"copy", "update", "pop", "setdefault"} {
		if method, ok := builtins.Methods.Dict.Get(name); ok {
			set[name] = method
		}
	}
	return exec.NewMethodSet(set)
}

// original is a dictionary's value as it was given, not the library's copy.
func original(self map[string]any, v *exec.Value, key string) any {
	if m, ok := v.Interface().(map[string]any); ok {
		return m[key]
	}
	return self[key]
}
