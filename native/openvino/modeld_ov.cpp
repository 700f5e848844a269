// The shim between modeld-openvino (Go, by dlopen) and OpenVINO's C++ core:
// a language model transformed to paged attention, whose KV blocks belong to
// the caller, and its tokenizer. Every function that can fail returns 0 or
// writes an error text and returns -1, or -2 where the model can't be run this
// way; no exception crosses the border.
//
// One model's mov_forward, mov_*_block and mov_close must not overlap;
// mov_tokenize and mov_detokenize may run beside them.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <limits>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <sstream>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/gather.hpp>
#include <openvino/op/matmul.hpp>
#include <openvino/op/minimum.hpp>
#include <openvino/pass/sdpa_to_paged_attention.hpp>

#define MOV_API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int32_t kABI = 2;

// A text model of the tokenizers' extension with its one request.
struct TextModel {
    ov::InferRequest request;
    std::mutex mutex;
};

struct Model {
    ov::CompiledModel compiled;
    ov::InferRequest request;
    TextModel tokenizer, detokenizer;
    ov::AnyMap rt_info;  // the tokenizer's
    std::vector<std::string> key_names, value_names;
    std::vector<ov::Tensor> caches;  // key and value of every layer
    std::set<std::string> inputs;
    bool gathers = false;  // logits of the wanted rows only
    int64_t vocab = 0, block_tokens = 0, block_bytes = 0, blocks = 0;
};

// One core for the process, never destroyed: its end unloads the devices'
// libraries under threads that they have started.
ov::Core& core() {
    static auto* const instance = new ov::Core();
    return *instance;
}

// Adds the tokenizers' extension, once.
void add_extension(const std::string& path) {
    static std::mutex mutex;
    static std::set<std::string> added;
    const std::lock_guard<std::mutex> lock(mutex);
    if (added.count(path) != 0) return;
    core().add_extension(path);
    added.insert(path);
}

// What this shim has no way to run.
struct Unsupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void set_error(char* err, uint64_t cap, const char* text) {
    if (err == nullptr || cap == 0) return;
    std::strncpy(err, text, cap - 1);
    err[cap - 1] = 0;
}

template <typename F>
int32_t guarded(char* err, uint64_t cap, F&& f) {
    try {
        f();
        return 0;
    } catch (const Unsupported& e) {
        set_error(err, cap, e.what());
        return -2;
    } catch (const std::exception& e) {
        set_error(err, cap, e.what());
    } catch (...) {
        set_error(err, cap, "unknown C++ exception");
    }
    return -1;
}

// "KEY=VALUE" lines.
ov::AnyMap parse_properties(const char* lines) {
    ov::AnyMap out;
    std::istringstream in(lines == nullptr ? "" : lines);
    for (std::string line; std::getline(in, line);) {
        const auto eq = line.find('=');
        if (eq != std::string::npos) out[line.substr(0, eq)] = line.substr(eq + 1);
    }
    return out;
}

// Puts a Gather before the last MatMul, so that logits are computed only for
// the rows that somebody wants. Models of another shape stay as they are.
bool gather_before_logits(const std::shared_ptr<ov::Model>& model) {
    const auto result = model->get_results().at(0);
    const auto matmul = std::dynamic_pointer_cast<ov::op::v0::MatMul>(result->input_value(0).get_node_shared_ptr());
    if (!matmul) return false;
    auto rows = std::make_shared<ov::op::v0::Parameter>(ov::element::i64, ov::PartialShape{-1});
    rows->set_friendly_name("modeld_rows");
    rows->output(0).set_names({"modeld_rows"});
    const auto axis = ov::op::v0::Constant::create(ov::element::i64, {}, {0});
    const auto gather = std::make_shared<ov::op::v8::Gather>(matmul->input_value(0), rows, axis);
    matmul->input(0).replace_source_output(gather);
    model->add_parameters({rows});
    model->validate_nodes_and_infer_types();
    return true;
}

void replace_limit(const std::shared_ptr<ov::Node>& node, size_t input) {
    const auto limit = std::dynamic_pointer_cast<ov::op::v0::Constant>(node->get_input_node_shared_ptr(input));
    if (!limit || limit->get_element_type() != ov::element::i32) return;
    // The largest values overflow in the extension's arithmetic.
    const auto none = ov::op::v0::Constant::create(ov::element::i32, limit->get_shape(), {std::numeric_limits<int32_t>::max() - 64});
    node->input(input).replace_source_output(none);
}

// Tokenizers cut a long text silently, by a Truncate op or a Minimum of its
// length and a limit. Who exceeds the context must be told instead.
void remove_limit(const std::shared_ptr<ov::Model>& tokenizer) {
    for (const auto& node : tokenizer->get_ordered_ops()) {
        const std::string type = node->get_type_name();
        if (type == "Truncate" && node->get_input_size() >= 3) replace_limit(node, node->get_input_size() - 3);
        if (std::dynamic_pointer_cast<ov::op::v1::Minimum>(node)) {
            replace_limit(node, 0);
            replace_limit(node, 1);
        }
    }
}

// Detokenizers drop or replace what is no whole character. A stream must see
// that more bytes of one are to come.
void keep_bytes(const std::shared_ptr<ov::Model>& detokenizer) {
    for (const auto& node : detokenizer->get_ordered_ops()) {
        if (std::string(node->get_type_name()) != "UTF8Validate") continue;
        for (size_t i = 0; i < node->get_output_size(); ++i) node->output(i).replace(node->input_value(i));
    }
}

void load_text_models(Model& m, const std::filesystem::path& folder) {
    const auto tokenizer = core().read_model((folder / "openvino_tokenizer.xml").string());
    m.rt_info = tokenizer->get_rt_info();
    remove_limit(tokenizer);
    m.tokenizer.request = core().compile_model(tokenizer, "CPU").create_infer_request();
    const auto detokenizer = core().read_model((folder / "openvino_detokenizer.xml").string());
    keep_bytes(detokenizer);
    m.detokenizer.request = core().compile_model(detokenizer, "CPU").create_infer_request();
}

// The KV blocks are in this process's memory, and only the CPU writes there in
// place: another device would keep what it computes in a copy of its own.
void require_cpu(const ov::CompiledModel& compiled) {
    std::string devices;
    for (const auto& d : compiled.get_property(ov::execution_devices)) devices += (devices.empty() ? "" : ", ") + d;
    if (devices != "CPU") throw Unsupported("the model would run on " + devices + ", and KV blocks are in host memory; set the device CPU");
}

void find_caches(Model& m) {
    for (const auto& input : m.compiled.inputs()) {
        const auto name = input.get_any_name();
        m.inputs.insert(name);
        if (name.rfind("key_cache.", 0) == 0) m.key_names.push_back(name);
        if (name.rfind("value_cache.", 0) == 0) m.value_names.push_back(name);
    }
    if (m.key_names.empty() || m.key_names.size() != m.value_names.size())
        throw Unsupported("paged attention does not apply to this model: it has no KV cache inputs");
    for (const auto* names : {&m.key_names, &m.value_names}) {
        for (const auto& name : *names) {
            const auto port = m.compiled.input(name);
            const auto shape = port.get_partial_shape();
            size_t elements = 1;
            for (int64_t d = 1; d < shape.rank().get_length(); ++d) elements *= shape[d].get_length();
            m.block_bytes += static_cast<int64_t>((elements * port.get_element_type().bitwidth() + 7) / 8);
        }
    }
    m.block_tokens = m.compiled.input(m.value_names[0]).get_partial_shape()[2].get_length();
}

template <typename T>
void bind(Model& m, const char* name, const T* data, const ov::Shape& shape) {
    if (m.inputs.count(name) == 0) return;
    m.request.set_tensor(name, ov::Tensor(ov::element::from<T>(), shape, const_cast<T*>(data)));
}

// The bytes of one block in one cache tensor.
char* block_at(ov::Tensor& cache, int64_t block, size_t* size) {
    *size = cache.get_byte_size() / cache.get_shape()[0];
    return static_cast<char*>(cache.data()) + *size * block;
}

void check_block(const Model& m, int64_t block) {
    if (block < 0 || block >= m.blocks) throw std::out_of_range("KV block " + std::to_string(block) + " of " + std::to_string(m.blocks));
}

}  // namespace

MOV_API int32_t mov_abi(void) { return kABI; }

// The runtime's build, such as "2026.4.1-22982-...". The text lives for ever.
MOV_API const char* mov_runtime_version(void) {
    static const std::string build = [] {
        try {
            return std::string(ov::get_openvino_version().buildNumber);
        } catch (...) {
            return std::string();
        }
    }();
    return build.c_str();
}

// Devices as "NAME\tDESCRIPTION" lines.
MOV_API int32_t mov_devices(char* out, uint64_t out_cap, char* err, uint64_t err_cap) {
    return guarded(err, err_cap, [&] {
        std::string text;
        for (const auto& d : core().get_available_devices())
            text += d + "\t" + core().get_property(d, ov::device::full_name) + "\n";
        set_error(out, out_cap, text.c_str());
    });
}

// Loads dir/openvino_model.xml and its tokenizers; extension is the path of
// libopenvino_tokenizers.so. *out is closed with mov_close.
MOV_API int32_t mov_open(const char* dir, const char* device, const char* properties, const char* extension, void** out, char* err, uint64_t err_cap) {
    return guarded(err, err_cap, [&] {
        auto m = std::make_unique<Model>();
        add_extension(extension);
        const std::filesystem::path folder(dir);
        load_text_models(*m, folder);
        const auto model = core().read_model((folder / "openvino_model.xml").string());
        ov::pass::SDPAToPagedAttention().run_on_model(model);
        m->gathers = gather_before_logits(model);
        m->compiled = core().compile_model(model, device, parse_properties(properties));
        require_cpu(m->compiled);
        m->request = m->compiled.create_infer_request();
        find_caches(*m);
        const auto logits = m->compiled.output(0).get_partial_shape();
        m->vocab = logits[logits.rank().get_length() - 1].get_length();
        *out = m.release();
    });
}

MOV_API void mov_close(void* model) {
    try {
        delete static_cast<Model*>(model);
    } catch (...) {
    }
}

// out gets: layers, vocabulary, tokens in a block, bytes of a block over all
// layers, whether single rows of logits are computed.
MOV_API void mov_info(void* model, int64_t* out) {
    const auto& m = *static_cast<Model*>(model);
    out[0] = static_cast<int64_t>(m.key_names.size());
    out[1] = m.vocab;
    out[2] = m.block_tokens;
    out[3] = m.block_bytes;
    out[4] = m.gathers ? 1 : 0;
}

// A fact of the tokenizer's rt_info, such as chat_template; "" if it has none.
MOV_API int32_t mov_fact(void* model, const char* key, char* out, uint64_t out_cap, char* err, uint64_t err_cap) {
    return guarded(err, err_cap, [&] {
        const auto& facts = static_cast<Model*>(model)->rt_info;
        const auto it = facts.find(key);
        const auto text = it == facts.end() ? std::string() : it->second.as<std::string>();
        if (text.size() >= out_cap) throw std::length_error(std::string(key) + " is longer than the buffer");
        set_error(out, out_cap, text.c_str());
    });
}

// Allocates the KV blocks of every layer, zeroed.
MOV_API int32_t mov_alloc(void* model, int64_t blocks, char* err, uint64_t err_cap) {
    return guarded(err, err_cap, [&] {
        auto& m = *static_cast<Model*>(model);
        for (const auto* names : {&m.key_names, &m.value_names}) {
            for (const auto& name : *names) {
                const auto port = m.compiled.input(name);
                ov::Shape shape{static_cast<size_t>(blocks)};
                const auto partial = port.get_partial_shape();
                for (int64_t d = 1; d < partial.rank().get_length(); ++d) shape.push_back(partial[d].get_length());
                ov::Tensor cache(port.get_element_type(), shape);
                std::memset(cache.data(), 0, cache.get_byte_size());
                m.request.set_tensor(name, cache);
                m.caches.push_back(cache);
            }
        }
        m.blocks = blocks;
    });
}

// Computes a batch: tokens of seqs sequences one after the other. begins has
// seqs+1 entries (where each sequence's tokens start), and so has
// block_begins (where its blocks start in block_ids). rows are the indices of
// the tokens whose logits go to out, vocabulary floats each.
MOV_API int32_t mov_forward(void* model, int64_t tokens, const int64_t* ids, const int64_t* positions, int64_t seqs, const int32_t* past,
                            const int32_t* begins, const int32_t* block_begins, const int32_t* block_ids, int32_t max_context,
                            int64_t rows, const int64_t* row_ids, float* out, char* err, uint64_t err_cap) {
    return guarded(err, err_cap, [&] {
        auto& m = *static_cast<Model*>(model);
        const auto n = static_cast<size_t>(tokens), s = static_cast<size_t>(seqs);
        const int64_t first = 0;
        bind(m, "input_ids", ids, {n});
        bind(m, "position_ids", positions, {n});
        bind(m, "past_lens", past, {s});
        bind(m, "subsequence_begins", begins, {s + 1});
        bind(m, "block_indices_begins", block_begins, {s + 1});
        bind(m, "block_indices", block_ids, {static_cast<size_t>(block_begins[seqs])});
        bind(m, "max_context_len", &max_context, {});
        // Somebody must ask for a row: one is computed for nobody.
        if (m.gathers) bind(m, "modeld_rows", rows > 0 ? row_ids : &first, {rows > 0 ? static_cast<size_t>(rows) : 1});
        m.request.infer();
        const auto logits = m.request.get_output_tensor(0);
        if (logits.get_element_type() != ov::element::f32) throw std::runtime_error("the logits are not f32");
        const auto* data = logits.data<const float>();
        for (int64_t i = 0; i < rows; ++i) {
            const auto row = m.gathers ? i : row_ids[i];
            std::memcpy(out + i * m.vocab, data + row * m.vocab, sizeof(float) * m.vocab);
        }
    });
}

MOV_API int32_t mov_copy_block(void* model, int64_t from, int64_t to, char* err, uint64_t err_cap) {
    return guarded(err, err_cap, [&] {
        auto& m = *static_cast<Model*>(model);
        check_block(m, from);
        check_block(m, to);
        for (auto& cache : m.caches) {
            size_t size;
            const auto* src = block_at(cache, from, &size);
            std::memcpy(block_at(cache, to, &size), src, size);
        }
    });
}

// Copies a block out of (write 0) or into (write 1) block_bytes of data.
MOV_API int32_t mov_move_block(void* model, int64_t block, char* data, int32_t write, char* err, uint64_t err_cap) {
    return guarded(err, err_cap, [&] {
        auto& m = *static_cast<Model*>(model);
        check_block(m, block);
        for (auto& cache : m.caches) {
            size_t size;
            auto* here = block_at(cache, block, &size);
            if (write != 0)
                std::memcpy(here, data, size);
            else
                std::memcpy(data, here, size);
            data += size;
        }
    });
}

// *count becomes the number of tokens; where it is more than cap, none is
// written and the caller comes again with more space.
MOV_API int32_t mov_tokenize(void* model, const char* text, uint64_t length, int64_t* out, int64_t cap, int64_t* count, char* err, uint64_t err_cap) {
    return guarded(err, err_cap, [&] {
        auto& t = static_cast<Model*>(model)->tokenizer;
        const std::lock_guard<std::mutex> lock(t.mutex);
        ov::Tensor input(ov::element::string, {1});
        input.data<std::string>()[0].assign(text, length);
        t.request.set_input_tensor(0, input);
        t.request.infer();
        const auto ids = t.request.get_tensor("input_ids");
        *count = static_cast<int64_t>(ids.get_size());
        if (*count > cap) return;
        if (ids.get_element_type() == ov::element::i64)
            std::copy_n(ids.data<const int64_t>(), *count, out);
        else
            std::copy_n(ids.data<const int32_t>(), *count, out);
    });
}

// Detokenizes rows of columns tokens each. The bytes of all texts go to out, one
// after the other, and where each ends to ends; a text may end within a
// character. Where *length, their sum, is more than out_cap, none is written
// and the caller comes again with more space.
MOV_API int32_t mov_detokenize(void* model, const int64_t* ids, int64_t rows, int64_t columns, char* out, uint64_t out_cap, uint64_t* ends,
                               uint64_t* length, char* err, uint64_t err_cap) {
    return guarded(err, err_cap, [&] {
        auto& t = static_cast<Model*>(model)->detokenizer;
        const std::lock_guard<std::mutex> lock(t.mutex);
        const ov::Shape shape{static_cast<size_t>(rows), static_cast<size_t>(columns)};
        t.request.set_input_tensor(0, ov::Tensor(ov::element::i64, shape, const_cast<int64_t*>(ids)));
        t.request.infer();
        const auto texts = t.request.get_output_tensor(0);
        if (static_cast<int64_t>(texts.get_size()) != rows) throw std::runtime_error("the detokenizer gave another number of texts");
        *length = 0;
        for (int64_t i = 0; i < rows; ++i) ends[i] = *length += texts.data<const std::string>()[i].size();
        if (*length > out_cap) return;
        for (int64_t i = 0; i < rows; ++i) {
            const auto& text = texts.data<const std::string>()[i];
            out = std::copy(text.begin(), text.end(), out);
        }
    });
}
