// libnvrtc.so.13 without CUDA: compiles kernels for the CPU by the system's C++ compiler (CXX, else g++).
//
// The source is preprocessed behind runtime.h and emulator.h; each `extern "C" __global__ void NAME(...)` in what comes
// out gets an entry that takes its arguments as cuLaunchKernel does; the compiler makes a shared object, in which it
// checks alignment, bounds of arrays, shifts and divisions (-fsanitize, reported by emulator.h).
#include "image.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <regex>
#include <spawn.h>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

// The text of the headers.
asm(R"(
.section .rodata
.globl headers
.hidden headers
headers:
    .ascii "# 1 \"runtime.h\"\n"
    .incbin "runtime.h"
    .ascii "\n# 1 \"emulator.h\"\n"
    .incbin "emulator.h"
    .byte 0
.text
)");
extern "C" const char headers[];
extern char** environ;

namespace {

constexpr int SUCCESS = 0, INVALID_INPUT = 3, INVALID_OPTION = 5, COMPILATION = 6, INTERNAL = 11;

// How kernels are compiled. -fno-gnu-unique: else statics of templates, that is shared memory, are one in the whole
// process. The checks end in emulator.h, so their library isn't linked.
const std::vector<std::string> COMPILE = {
    "-D__global__=", "-D__launch_bounds__(...)=", "-O1", "-g1", "-w", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique",
    "-fno-strict-aliasing", "-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-fwrapv", "-fstack-clash-protection",
    "-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero", "-fno-sanitize-recover=all", "-c"};
const std::vector<std::string> LINK = {"-shared", "-nostartfiles", "-Wl,-Bsymbolic", "-Wl,-z,defs"};

struct Program {
    std::string source, name, log, image;
};

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

void write_file(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// A folder that is removed with what the compiler left in it.
struct Folder {
    std::string path;

    Folder() {
        const char* parent = getenv("TMPDIR");
        path = std::string(parent ? parent : "/tmp") + "/sft-emulator-XXXXXX";
        if (!mkdtemp(path.data())) path.clear();
    }
    ~Folder() {
        for (const char* file : {"/kernel.cu", "/kernel.ii", "/kernel.cpp", "/kernel.o", "/kernel.so", "/log"})
            unlink((path + file).c_str());
        rmdir(path.c_str());
    }
};

// Runs the compiler; what it says goes to `log`.
bool compiler(std::vector<std::string> arguments, const Folder& folder, std::string& log) {
    const char* name = getenv("CXX");
    arguments.insert(arguments.begin(), name && *name ? name : "g++");
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    std::string log_path = folder.path + "/log";
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    pid_t child;
    int error = posix_spawnp(&child, pointers[0], &files, nullptr, pointers.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    if (error != 0) {
        log += "can't run " + arguments[0] + ": " + strerror(error) + "\n";
        return false;
    }
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return false;
    log += read_file(log_path);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// The options of NVRTC that mean something here, in the words of the compiler; false if one can't be understood.
bool translate(int count, const char* const* options, std::vector<std::string>& to, std::string& log) {
    std::string standard = "c++17", capability;
    std::smatch match;
    for (int i = 0; i < count; i++) {
        std::string option = options[i];
        if (std::regex_match(option, match, std::regex("(?:--gpu-architecture|-arch)=(?:sm|compute)_(\\d+)[af]?")))
            capability = match[1];
        else if (std::regex_match(option, match, std::regex("--?std=(.*)")))
            standard = match[1];
        else if (std::regex_match(option, match, std::regex("(?:-D|--define-macro=)\\s*(.+)")))
            to.push_back("-D" + match[1].str());
        else if (std::regex_match(option, match, std::regex("(?:-I|--include-path=)\\s*(.+)")))
            to.push_back("-I" + match[1].str());
        else if (option.empty() || option[0] != '-') {
            log += "unknown option " + option + "\n";
            return false;
        }
    }
    to.push_back("-std=" + standard);
    to.push_back("-DSFT_EMULATOR");
    to.push_back("-D__CUDACC_RTC__");
    if (!capability.empty()) to.push_back("-D__CUDA_ARCH__=" + capability + "0");
    return true;
}

// Splits at commas outside of brackets.
std::vector<std::string> split(const std::string& list) {
    std::vector<std::string> parts(1);
    int depth = 0;
    for (char c : list) {
        depth += (c == '(' || c == '<' || c == '{') - (c == ')' || c == '>' || c == '}');
        if (c == ',' && depth == 0) parts.emplace_back();
        else parts.back() += c;
    }
    return parts;
}

// The entries of all kernels in preprocessed source.
std::string entries(const std::string& source) {
    static const std::regex kernel("extern\\s+\"C\"\\s+__global__\\s+(?:void\\s+)?(?:__launch_bounds__\\s*\\(([^{;]*?)\\)\\s+)?"
                                   "(?:void\\s+)?(\\w+)\\s*\\(([^()]*)\\)\\s*");
    static const std::regex parameter("\\s*([^]*?)\\w+\\s*");
    std::string text = "\n# 1 \"entries\"\nstatic constexpr int emulator_first(int threads, int = 0, int = 0) { return threads; }\n";
    for (size_t at = source.find("extern \"C\""); at != std::string::npos; at = source.find("extern \"C\"", at + 1)) {
        size_t end = source.find_first_of("{;", at);
        if (end == std::string::npos || source[end] == ';') continue;
        std::string head = source.substr(at, end - at);
        std::smatch match, one;
        if (!std::regex_match(head, match, kernel)) continue;
        std::string name = match[2], bounds = match[1].matched ? match[1].str() : "1024", arguments;
        int index = 0;
        for (const std::string& part : split(match[3]))
            if (std::regex_match(part, one, parameter)) {
                if (index > 0) arguments += ", ";
                arguments += "*(" + one[1].str() + "*)arguments[" + std::to_string(index++) + "]";
            }
        const std::string visible = "extern \"C\" __attribute__((visibility(\"default\"))) ";
        text += visible + "void " ENTRY_PREFIX + name + "(void** arguments) { " + name + "(" + arguments + "); }\n";
        text += "extern \"C\" { __attribute__((visibility(\"default\"))) int " BOUNDS_PREFIX + name + " = emulator_first(" + bounds + "); }\n";
    }
    return text;
}

int compile(Program& program, int count, const char* const* options) {
    Folder folder;
    if (folder.path.empty()) return program.log = "no folder for temporary files\n", INTERNAL;
    std::vector<std::string> preprocess;
    if (!translate(count, options, preprocess, program.log)) return INVALID_OPTION;
    auto file = [&](const char* name) { return folder.path + "/" + name; };
    std::string standard;
    for (const std::string& option : preprocess)
        if (option.rfind("-std=", 0) == 0) standard = option;

    write_file(file("kernel.cu"), std::string(headers) + "\n# 1 \"" + program.name + "\"\n" + program.source);
    preprocess.insert(preprocess.end(), {"-E", "-w", "-x", "c++", file("kernel.cu"), "-o", file("kernel.ii")});
    if (!compiler(preprocess, folder, program.log)) return COMPILATION;

    std::string source = read_file(file("kernel.ii"));
    write_file(file("kernel.cpp"), source + entries(source));
    std::vector<std::string> to_object = COMPILE, to_image = LINK;
    to_object.insert(to_object.end(), {standard, file("kernel.cpp"), "-o", file("kernel.o")});
    to_image.insert(to_image.end(), {file("kernel.o"), "-o", file("kernel.so"), "-lm"});
    if (!compiler(to_object, folder, program.log) || !compiler(to_image, folder, program.log)) return COMPILATION;

    std::string object = read_file(file("kernel.so"));
    ImageHeader header;
    memcpy(header.magic, IMAGE_MAGIC, sizeof header.magic);
    header.bytes = object.size();
    program.image = std::string((const char*)&header, sizeof header) + object;
    return SUCCESS;
}

int copy_out(const std::string& from, char* to) { return memcpy(to, from.data(), from.size()), SUCCESS; }

}  // namespace

// Who keeps what was compiled asks for the version, to compile again after a change: so this one is that of the text of
// the headers and of how the compiler is called.
API nvrtcVersion(int* major, int* minor) {
    std::string text = headers;
    for (const std::vector<std::string>* options : {&COMPILE, &LINK})
        for (const std::string& option : *options) text += option;
    *major = 13;
    *minor = 1000000 + (int)(std::hash<std::string>()(text) % 1000000);
    return SUCCESS;
}
API nvrtcCreateProgram(Program** it, const char* source, const char* name, int headers, const char* const*, const char* const*) {
    if (headers != 0) return INVALID_INPUT;
    *it = new Program{source, name && *name ? name : "kernel.cu", "", ""};
    return SUCCESS;
}
API nvrtcDestroyProgram(Program** it) { return delete *it, *it = nullptr, SUCCESS; }
API nvrtcCompileProgram(Program* it, int count, const char* const* options) { return it->log.clear(), compile(*it, count, options); }
API nvrtcGetCUBINSize(Program* it, size_t* bytes) { return *bytes = it->image.size(), SUCCESS; }
API nvrtcGetCUBIN(Program* it, char* to) { return copy_out(it->image, to); }
// The same for PTX: who asks for it gives it to cuModuleLoadData, too.
API nvrtcGetPTXSize(Program* it, size_t* bytes) { return nvrtcGetCUBINSize(it, bytes); }
API nvrtcGetPTX(Program* it, char* to) { return nvrtcGetCUBIN(it, to); }
API nvrtcGetProgramLogSize(Program* it, size_t* bytes) { return *bytes = it->log.size() + 1, SUCCESS; }
API nvrtcGetProgramLog(Program* it, char* to) { return to[it->log.size()] = 0, copy_out(it->log, to); }

extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int error) {
    switch (error) {
        case SUCCESS: return "NVRTC_SUCCESS";
        case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
        case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
        case COMPILATION: return "NVRTC_ERROR_COMPILATION";
        default: return "NVRTC_ERROR_INTERNAL_ERROR";
    }
}
