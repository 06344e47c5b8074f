// vgg_fast._bindings on Python's stable ABI: one file for Python 3.10 and every later one.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <exception>
#include <iterator>
#include <new>

#include "bindings/introspection.h"

namespace {

namespace introspection = vgg_fast::introspection;

// ------------------------------------------------------------------------------- values to Python
// Each returns a new reference, or nullptr with Python's error set.

PyObject* to_python(const std::string& text) {
  return PyUnicode_FromStringAndSize(text.data(), Py_ssize_t(text.size()));
}

PyObject* to_python(int64_t number) { return PyLong_FromLongLong(number); }

PyObject* to_python(const introspection::Fact& fact) {
  return std::visit([](const auto& value) { return to_python(value); }, fact);
}

PyObject* to_python(const std::vector<std::string>& texts) {
  PyObject* list = PyList_New(Py_ssize_t(texts.size()));
  if (list == nullptr) return nullptr;
  for (size_t i = 0; i < texts.size(); ++i) {
    PyObject* text = to_python(texts[i]);
    // PyList_SetItem takes over the reference, also where it fails.
    if (text == nullptr || PyList_SetItem(list, Py_ssize_t(i), text) < 0) {
      Py_DecRef(list);
      return nullptr;
    }
  }
  return list;
}

PyObject* to_python(const introspection::Facts& facts) {
  PyObject* dict = PyDict_New();
  if (dict == nullptr) return nullptr;
  for (const auto& [name, fact] : facts) {
    PyObject* value = to_python(fact);
    const bool stored = value != nullptr && PyDict_SetItemString(dict, name.c_str(), value) == 0;
    Py_DecRef(value);
    if (!stored) {
      Py_DecRef(dict);
      return nullptr;
    }
  }
  return dict;
}

// ------------------------------------------------------------------------------------- functions

// No C++ exception may pass through Python's interpreter.
template <typename Function>
PyObject* guarded(Function function) {
  try {
    return to_python(function());
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

template <auto kFunction>
PyObject* without_arguments(PyObject*, PyObject*) {
  return guarded(kFunction);
}

template <introspection::Facts (*kPlan)(const introspection::Question&)>
PyObject* plan(PyObject*, PyObject* arguments, PyObject* keywords) {
  using introspection::kArguments;
  char* names[std::size(kArguments) + 1] = {};
  for (size_t i = 0; i < std::size(kArguments); ++i) names[i] = const_cast<char*>(kArguments[i]);
  long long numbers[std::size(kArguments) - 1];
  int for_dgrad;
  auto& [images, inputs, outputs, height, width, storage, precision, threads, algorithm,
         workspace] = numbers;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "LLLLLLLLLLp", names, &images, &inputs,
                                   &outputs, &height, &width, &storage, &precision, &threads,
                                   &algorithm, &workspace, &for_dgrad)) {
    return nullptr;
  }
  return guarded([&] {
    return kPlan({images, inputs, outputs, height, width, storage, precision, threads, algorithm,
                  workspace, for_dgrad != 0});
  });
}

// METH_KEYWORDS stores a function of three arguments as one of two.
template <introspection::Facts (*kPlan)(const introspection::Question&)>
PyCFunction plan_method() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&plan<kPlan>));
}

PyMethodDef kMethods[] = {
    {"build_facts", without_arguments<introspection::build_facts>, METH_NOARGS,
     "Compiler, flags and torch of this build."},
    {"cpu_instruction_sets", without_arguments<introspection::cpu_instruction_sets>, METH_NOARGS,
     "The instruction sets that this processor can run, the slowest first."},
    {"cpu_instruction_set", without_arguments<introspection::cpu_instruction_set>, METH_NOARGS,
     "The one that the kernels use; RuntimeError if VGG_FAST_CPU names one that can't run."},
    {"cpu_algorithms", without_arguments<introspection::cpu_algorithms>, METH_NOARGS,
     "The settings of the CPU algorithm, auto the first; operators take their index."},
    {"plan_convolution", plan_method<introspection::plan_convolution>(),
     METH_VARARGS | METH_KEYWORDS, "How a convolution is computed; see vgg_fast.cpu.plan."},
    {"plan_weight_gradient", plan_method<introspection::plan_weight_gradient>(),
     METH_VARARGS | METH_KEYWORDS,
     "How a convolution's weight gradient is computed; see vgg_fast.cpu.plan."},
    {nullptr, nullptr, 0, nullptr},
};

// Empty slots: the module has no state, and nothing to do when it is loaded.
PyModuleDef_Slot kSlots[] = {{0, nullptr}};

PyModuleDef kDefinition = {.m_base = PyModuleDef_HEAD_INIT,
                           .m_name = "_bindings",
                           .m_doc = introspection::kModule,
                           .m_size = 0,
                           .m_methods = kMethods,
                           .m_slots = kSlots,
                           .m_traverse = nullptr,
                           .m_clear = nullptr,
                           .m_free = nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__bindings() { return PyModuleDef_Init(&kDefinition); }
